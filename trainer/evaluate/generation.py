"""Tasks on answers: verifiers judge a model's own, a judge compares them with an opponent's."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finecut.dataprep.prompt_shards import PromptRow
from finecut.proto.config import UserError
from finecut.trainer.evaluate import win_rate
from finecut.trainer.evaluate.config import Generation, WinRate
from finecut.trainer.evaluate.documents import prompt_ids
from finecut.trainer.evaluate.scores import Scores
from finecut.trainer.parallel import process_group
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.rewards.answer import Answer, Scorer
from finecut.trainer.rewards.reward_set import RewardSet


def accuracy(
    how: Generation, task: str, prompts: Sequence[PromptRow], answers: Sequence[Sequence[int]], tokenizer: Any
) -> list[Scores]:
    """The verifiers' weighted sum for each answer. Raises UserError where a record cannot be judged."""
    with process_group.connect() as devices, contextlib.closing(verifiers(how, devices)) as rewards:
        scores = rewards.score(as_judged(prompts, answers, tokenizer))
    if any(math.isnan(value) for value in scores.total_N):
        raise UserError(f"task {task!r}: a verifier gave no number: {'; '.join(scores.problems)}")
    return [Scores(task, "accuracy", prompt_ids(prompts), np.array(scores.total_N))]


def verifiers(how: Generation, devices: Devices) -> RewardSet:
    """The task's verifiers, started; close them. Collective."""
    return RewardSet.from_config(how.verifiers, 0, devices, _no_model)


def as_judged(prompts: Sequence[PromptRow], answers: Sequence[Sequence[int]], tokenizer: Any) -> list[Answer]:
    """Answers in token ids, as verifiers see them."""
    return [
        Answer(
            record_id=name,
            prompt=tokenizer.decode(prompt.input_ids_T.tolist(), skip_special_tokens=True),
            text=tokenizer.decode(list(answer), skip_special_tokens=True).strip(),
            record={"source": prompt.source, "reference": prompt.reference, "verifier": prompt.verifier},
        )
        for name, prompt, answer in zip(prompt_ids(prompts), prompts, answers, strict=True)
    ]


def preference(
    how: WinRate,
    task: str,
    prompts: Sequence[PromptRow],
    ours: Sequence[Sequence[int]],
    theirs: Sequence[Sequence[int]],
    tokenizer: Any,
    tensor_parallel_size: int,
) -> list[Scores]:
    """1 for each answer that the judge prefers to the opponent's, half for a tie."""
    questions = [prompt.input_ids_T.tolist() for prompt in prompts]
    won_N = win_rate.judge(how.judge, questions, ours, theirs, tokenizer, tensor_parallel_size)
    return [Scores(task, "win_rate", prompt_ids(prompts), won_N)]


def _no_model(folder: Path) -> Scorer:
    raise AssertionError("validation refuses reward models among verifiers")
