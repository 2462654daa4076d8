"""All tasks of a stage on one model: first what vLLM answers, then what is worked out from it and by the trainer.

vLLM, loaded once: answers, user's tasks, lm-eval -> closed -> opponents -> judges, verifiers -> decoder: loss, ranks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from finecut.dataprep.prompt_shards import PromptRow
from finecut.proto.config import UserError
from finecut.trainer.evaluate import forward, generation, user_task
from finecut.trainer.evaluate.answers import AskedModel, asked
from finecut.trainer.evaluate.config import Generation, Harness, Perplexity, Ranking, Task, UserTask, WinRate
from finecut.trainer.evaluate.documents import prompt_ids, read_documents, read_prompts
from finecut.trainer.evaluate.scores import Scores
from finecut.trainer.models.heads import head_of
from finecut.trainer.models.logits import load_decoder
from finecut.trainer.models.source import locate_model
from finecut.trainer.stages.samples import load_tokenizer

# Answers of each task, by the prompt's name.
Texts = dict[str, dict[str, str]]
_Ids = list[tuple[int, ...]]


class Measurement:
    """One model and the tasks that it is measured by. `run` does it; `texts` are what it answered."""

    def __init__(self, folder: Path, tasks: Mapping[str, Task], tensor_parallel_size: int, seed: int) -> None:
        """Reads all data first. Raises UserError where a task cannot be done."""
        self._folder, self._tasks, self._seed = folder, tasks, seed
        self._tensor_parallel_size = tensor_parallel_size
        self._source = locate_model(folder)
        if head_of(self._source) is not None:
            raise UserError(f"evaluate.model: {folder} scores answers and writes none; evaluate a language model")
        self._tokenizer = load_tokenizer(self._source.tokenizer)
        self._prompts = {
            name: read_prompts(task.examples, self._tokenizer)
            for name, task in tasks.items()
            if isinstance(task, Generation | WinRate)
        }
        self.texts: Texts = {}

    def run(self) -> list[Scores]:
        """Every metric of every task, in the order of the job."""
        found: dict[str, list[Scores]] = {}
        answers: dict[str, _Ids] = {}
        if any(not isinstance(task, Perplexity | Ranking) for task in self._tasks.values()):
            with asked(self._folder, self._tensor_parallel_size, self._seed) as model:
                answers = self._answers(model, self._tasks)
                found = self._asked(model)
        for name, ids in answers.items():
            self.texts[name] = dict(zip(prompt_ids(self._prompts[name]), map(self._text, ids), strict=True))
        found |= {name: self._judged(name, ids) for name, ids in answers.items()}
        found |= self._computed()
        return [scores for name in self._tasks for scores in found[name]]

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def _answers(self, model: AskedModel, tasks: Mapping[str, Task]) -> dict[str, _Ids]:
        return {
            name: model.answer_ids(_ids(self._prompts[name]), task.sampling)
            for name, task in tasks.items()
            if isinstance(task, Generation | WinRate)
        }

    def _asked(self, model: AskedModel) -> dict[str, list[Scores]]:
        found = {}
        for name, task in self._tasks.items():
            if isinstance(task, UserTask):
                found[name] = user_task.run(task, name, model)
            elif isinstance(task, Harness):
                from finecut.trainer.evaluate import harness  # takes seconds to import, and few need it

                found[name] = harness.run(task, name, model)
        return found

    def _judged(self, name: str, ours: _Ids) -> list[Scores]:
        task, prompts = self._tasks[name], self._prompts[name]
        if isinstance(task, Generation):
            return generation.accuracy(task, name, prompts, ours, self._tokenizer)
        assert isinstance(task, WinRate)
        theirs = self._opponents(name, task, prompts)
        size = self._tensor_parallel_size
        return generation.preference(task, name, prompts, ours, theirs, self._tokenizer, size)

    def _opponents(self, name: str, task: WinRate, prompts: Sequence[PromptRow]) -> _Ids:
        """Asked in the same ids, which its own template may write otherwise: then the data's check refuses it."""
        read_prompts(task.examples, load_tokenizer(locate_model(task.opponent).tokenizer))
        with asked(task.opponent, self._tensor_parallel_size, self._seed) as model:
            return self._answers(model, {name: task})[name]

    def _computed(self) -> dict[str, list[Scores]]:
        """By the trainer's own forward pass, the model loaded once."""
        tasks = {name: task for name, task in self._tasks.items() if isinstance(task, Perplexity | Ranking)}
        if not tasks:
            return {}
        documents = {name: read_documents(task.examples, self._tokenizer) for name, task in tasks.items()}
        model = load_decoder(self._source, "cuda" if torch.cuda.is_available() else "cpu")
        return {
            name: forward.perplexity(model, documents[name], name)
            if isinstance(task, Perplexity)
            else forward.ranking(model, documents[name], task, name)
            for name, task in tasks.items()
        }


def _ids(prompts: Sequence[PromptRow]) -> list[list[int]]:
    return [prompt.input_ids_T.tolist() for prompt in prompts]
