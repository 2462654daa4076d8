"""Tasks of EleutherAI's lm-eval, from local files, on a model in vLLM. Prompts and metrics are the library's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from finecut.proto.config import UserError
from finecut.trainer.evaluate.answers import AskedModel
from finecut.trainer.evaluate.config import Harness, Sampling
from finecut.trainer.evaluate.scores import Scores
from finecut.trainer.serving.offline import Decoding

_DEFAULT_NEW_TOKENS = 256


def run(how: Harness, task: str, model: AskedModel) -> list[Scores]:
    """Runs the tasks. Raises UserError where the library does not know or cannot run them."""
    manager = TaskManager(include_path=str(how.folder), include_defaults=False)
    if missing := sorted(set(how.tasks) - set(manager.all_tasks)):
        known = ", ".join(sorted(manager.all_tasks)) or "none"
        raise UserError(f"evaluate.tasks.lm_eval.tasks: {how.folder} has no {', '.join(missing)}; it has {known}")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        results = simple_evaluate(
            model=HarnessModel(model),
            tasks=list(how.tasks),
            task_manager=manager,
            apply_chat_template=how.apply_chat_template,
            bootstrap_iters=0,  # intervals are our own
            log_samples=True,
            random_seed=model.seed,
            numpy_random_seed=model.seed,
            torch_random_seed=model.seed,
            fewshot_random_seed=model.seed,
        )
    except UserError:
        raise
    except Exception as error:  # a task's files are the user's, and the library raises anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"evaluate.tasks.lm_eval: lm-eval cannot run {', '.join(how.tasks)}: {reason}") from error
    higher = results.get("higher_is_better", {})
    found = [
        scores
        for name, samples in sorted(results["samples"].items())
        for scores in _scores(task, name, samples, higher.get(name, {}))
    ]
    if not found:
        raise UserError(f"evaluate.tasks.lm_eval: {', '.join(how.tasks)} give no metric with a number for each example")
    return found


def _scores(task: str, name: str, samples: Sequence[Mapping[str, Any]], higher: Mapping[str, bool]) -> list[Scores]:
    """Metrics that are a number of each example; those of a whole corpus, such as BLEU, are not."""
    metrics = [
        metric
        for metric in samples[0].get("metrics", [])
        if all(isinstance(sample.get(metric), int | float | np.number) for sample in samples)
    ]
    several = len({sample.get("filter", "none") for sample in samples}) > 1
    found = []
    for metric in metrics:
        ids = tuple(f"{s['doc_id']}/{s.get('filter', 'none')}" if several else str(s["doc_id"]) for s in samples)
        values_N = np.array([float(sample[metric]) for sample in samples])
        is_higher_better = bool(higher.get(metric, True))
        found.append(Scores(task, f"{name}_{metric}", ids, values_N, higher_is_better=is_higher_better))
    return found


class HarnessModel(TemplateLM):
    """What lm-eval asks a model for, answered by vLLM."""

    def __init__(self, model: AskedModel) -> None:
        super().__init__()
        self._model = model
        self._tokenizer = model.tokenizer

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        return self._tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._tokenizer(string, add_special_tokens=bool(add_special_tokens))["input_ids"]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self._tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        texts = [[self.eot_token_id, *self.tok_encode(request.args[0])] for request in requests]
        texts = [ids[-self._model.engine.max_sequence_tokens + 1 :] for ids in texts]
        return [float(found.sum()) for found in self._model.engine.log_probabilities(texts)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers of equal settings are asked for at once."""
        answers: dict[int, str] = {}
        by_settings: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            by_settings.setdefault(repr(request.args[1]), []).append(number)
        for numbers in by_settings.values():
            texts = self._until([requests[n].args[0] for n in numbers], requests[numbers[0]].args[1])
            answers |= dict(zip(numbers, texts, strict=True))
        return [answers[number] for number in range(len(requests))]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Of each continuation after its context: its log-probability, and whether greedy decoding would write it."""
        limit = self._model.engine.max_sequence_tokens - 1
        whole = [[*context, *continuation][-limit:] for _, context, continuation in requests]
        sums = [
            float(found[-len(continuation) :].sum())
            for found, (_, _, continuation) in zip(self._model.engine.log_probabilities(whole), requests, strict=True)
        ]
        prompts = [ids[: -len(continuation)] for ids, (_, _, continuation) in zip(whole, requests, strict=True)]
        greedy = self._model.engine.answer(prompts, [Decoding(len(continuation)) for _, _, continuation in requests])
        return [
            (total, answer.token_ids == tuple(continuation))
            for total, answer, (_, _, continuation) in zip(sums, greedy, requests, strict=True)
        ]

    def _until(self, contexts: Sequence[str], how: Mapping[str, Any]) -> list[str]:
        temperature = float(how.get("temperature") or 0) if how.get("do_sample") else 0.0
        sampling = Sampling(int(how.get("max_gen_toks") or _DEFAULT_NEW_TOKENS), temperature, self._model.seed)
        limit = self._model.engine.max_sequence_tokens - sampling.max_new_tokens
        if limit < 1:
            raise UserError(
                f"evaluate.tasks.lm_eval: max_gen_toks: {sampling.max_new_tokens} leaves no room for a prompt"
            )
        found = self._model.answer_ids([self.tok_encode(context)[-limit:] for context in contexts], sampling)
        return [_cut(self._tokenizer.decode(list(ids), skip_special_tokens=True), how.get("until")) for ids in found]


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or []:
        text = text.split(stop)[0] if stop else text
    return text
