"""The learning rate of a step: a pure function, so there is no scheduler state to save."""

from __future__ import annotations

import math

from finecut.trainer.config import ScheduleConfig, ScheduleKind


def learning_rate_at(step: int, total_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """Learning rate of `step`, counted from 1.

    Rises linearly from 0 over the warm-up (step `warmup` has the peak), then falls to `final_fraction * peak`,
    which the last step has.
    """
    warmup = schedule.warmup_of(total_steps)
    if step <= warmup:
        return peak * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * _remaining(schedule.kind, progress))


def _remaining(kind: ScheduleKind, progress: float) -> float:
    """Share of the way from the final value to the peak that is left, 1 down to 0."""
    if kind is ScheduleKind.COSINE:
        return 0.5 * (1 + math.cos(math.pi * progress))
    if kind is ScheduleKind.LINEAR:
        return 1 - progress
    return 1.0
