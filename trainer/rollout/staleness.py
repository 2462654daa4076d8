"""How far engines may run ahead of the trainer, with GPUs of their own.

Policy version v is the policy after v optimizer steps, and step s trains version s into s + 1. A batch for step s whose
sampling begins at version e is s - e versions behind when it is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

from finecut.proto.config import UserError
from finecut.trainer.rollout.sample import Sample


class StaleSamplesError(UserError):
    """A batch is further behind than the job allows."""


def may_start(step: int, engine_version: int, max_staleness: int) -> bool:
    """Whether sampling of the batch for `step` may begin while engines are at `engine_version`."""
    return step - engine_version <= max_staleness


def check(samples: Sequence[Sample], trainer_version: int, max_staleness: int) -> None:
    """Raises StaleSamplesError when a sample's oldest token is more than `max_staleness` versions behind."""
    behind = [(sample.staleness(trainer_version), sample) for sample in samples]
    stale = [(versions, sample) for versions, sample in behind if versions > max_staleness]
    if stale:
        versions, sample = max(stale, key=lambda pair: pair[0])
        raise StaleSamplesError(
            f"rollout.max_staleness: {len(stale)} of {len(samples)} samples are more than {max_staleness} policy "
            f"versions behind the trainer's version {trainer_version} (record {sample.record_id} is {versions} behind)"
        )
