"""The learning rate of a step: a pure function, so there is no scheduler state to save."""

from __future__ import annotations

import math

from finecut.proto.config import UserError
from finecut.proto.run import user_code
from finecut.trainer.config import ScheduleConfig, ScheduleKind
from finecut.trainer.extensions import Schedule


def learning_rate_at(step: int, total_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """Learning rate of `step`, counted from 1.

    Rises linearly from 0 over the warm-up (step `warmup` has the peak), then falls to `final_fraction * peak`,
    which the last step has. A schedule of the user's takes the place of all that; UserError where it is no number.
    """
    if schedule.custom is not None:
        return peak * _multiple(schedule.custom, step, total_steps)
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


def _multiple(custom: Schedule, step: int, total_steps: int) -> float:
    try:
        multiple = float(custom(step, total_steps))
    except Exception as error:  # user code may raise anything
        raise UserError(f"training.schedule.custom failed at step {step}: {user_code.told(error)}") from error
    if not 0 <= multiple < math.inf:
        raise UserError(f"training.schedule.custom gave {multiple} at step {step}; it must be 0 or more")
    return multiple
