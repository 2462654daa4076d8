"""Tasks of evaluate stages as measurements of a policy in training (see evaluation.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from finecut.dataprep.prompt_shards import PromptRow
from finecut.proto.config import UserError
from finecut.trainer.evaluate import generation
from finecut.trainer.evaluate.config import WhileTraining
from finecut.trainer.evaluate.documents import prompt_ids, read_prompts
from finecut.trainer.evaluate.scores import Scores
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.rl.batches import Collected
from finecut.trainer.rollout.episode import Prompt
from finecut.trainer.rollout.sampling import MIN_TEMPERATURE, SamplingParameters


@dataclasses.dataclass(frozen=True)
class AskedTask:
    """A task with its prompts; `rows` are what verifiers read."""

    task: WhileTraining
    rows: tuple[PromptRow, ...]
    prompts: tuple[Prompt, ...]
    sampling: SamplingParameters

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its answer."""
        return max(len(prompt.token_ids) for prompt in self.prompts) + self.sampling.max_new_tokens


def read(tasks: Sequence[WhileTraining], tokenizer: Any, stop_token_ids: tuple[int, ...]) -> tuple[AskedTask, ...]:
    """Raises UserError for data of another tokenizer, or none."""
    return tuple(_read(task, tokenizer, stop_token_ids) for task in tasks)


class TaskAccuracy:
    """A measurement: the mean of the verifiers' weighted sums, with its 95% interval."""

    def __init__(self, asked: AskedTask, tokenizer: Any, devices: Devices) -> None:
        """Starts the verifiers. Collective."""
        self._asked = asked
        self._tokenizer = tokenizer
        self._verifiers = generation.verifiers(asked.task.how, devices)

    @property
    def every_steps(self) -> int:
        """As the evaluate stage says."""
        return self._asked.task.every_steps

    @property
    def prompts(self) -> Sequence[Prompt]:
        """Those of the task."""
        return self._asked.prompts

    @property
    def sampling(self) -> SamplingParameters:
        """As the task says."""
        return self._asked.sampling

    @property
    def takes_turns(self) -> bool:
        """No: the evaluate stage asks the trained model the same, without an environment."""
        return False

    def metrics(self, answers: Collected) -> dict[str, float]:
        """Of the answers that the verifiers could judge; how many they could not is counted."""
        rows, how = self._asked.rows, self._asked.task.how
        judged = generation.as_judged(rows, [sample.answer_ids for sample in answers.samples], self._tokenizer)
        values_N = np.array(self._verifiers.measure(judged).total_N)
        known_N = ~np.isnan(values_N)
        name = self._asked.task.name
        found = {f"{name}/answers": float(len(rows)), f"{name}/unscored_answers": float((~known_N).sum())}
        if known_N.any():
            names = tuple(one for one, known in zip(prompt_ids(rows), known_N, strict=True) if known)
            interval = Scores(name, "accuracy", names, values_N[known_N]).interval(how.sampling.seed)
            found |= {f"{name}/accuracy": interval.value}
            found |= {f"{name}/accuracy_low": interval.low, f"{name}/accuracy_high": interval.high}
        return found

    def close(self) -> None:
        """Ends the verifiers."""
        self._verifiers.close()


def _read(task: WhileTraining, tokenizer: Any, stop_token_ids: tuple[int, ...]) -> AskedTask:
    how = task.how.sampling
    rows = tuple(read_prompts(task.how.examples, tokenizer))
    if 0 < how.temperature < MIN_TEMPERATURE:
        raise UserError(
            f"{task.name}: generation.temperature: {how.temperature:g} is neither 0, which is greedy, nor at least"
            f" {MIN_TEMPERATURE}, as while_training needs"
        )
    greedy = not how.temperature
    sampling = SamplingParameters(
        how.max_new_tokens,
        temperature=1.0 if greedy else how.temperature,
        top_k=1 if greedy else None,
        stop_token_ids=stop_token_ids,
    )
    prompts = tuple(
        Prompt(f"{task.name}/{name}", tuple(row.input_ids_T.tolist()))
        for name, row in zip(prompt_ids(rows), rows, strict=True)
    )
    return AskedTask(task, rows, prompts, sampling)
