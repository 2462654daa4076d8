"""Dynamic loss scaling for FP16 (Micikevicius et al., 2018): small gradients would become zero without it.

The loss is multiplied by a scale before the backward pass and the gradients are divided by it afterwards. A step
whose gradients overflowed is skipped and the scale halved; after a run of good steps it doubles.
"""

from __future__ import annotations

import dataclasses

# Origin: torch.amp.GradScaler's defaults for start, growth and interval.
_INITIAL_SCALE = 2.0**16
_GROWTH_INTERVAL = 2000
_FACTOR = 2.0
_LARGEST_SCALE = 2.0**24  # beyond this FP16 gradients gain nothing, and the FP32 loss loses nothing below it
# From 2^16 to below 1 takes 17 halvings; a scale that low means the model itself overflows.
_MAX_SKIPPED = 20


class LossScaleError(RuntimeError):
    """Gradients stay non-finite however small the scale: training diverged or the model overflows FP16."""


@dataclasses.dataclass
class LossScaler:
    """The scale and its counters. `enabled` False (FP32, BF16): the scale is 1 and never moves."""

    enabled: bool
    scale: float = _INITIAL_SCALE
    good_steps: int = 0  # since the scale last changed
    skipped_steps: int = 0  # in a row

    def __post_init__(self) -> None:
        if not self.enabled:
            self.scale = 1.0

    def update(self, finite: bool, step: int) -> bool:
        """Takes note of a step, alike on all ranks; returns whether the optimizer may step.

        `finite` must be the same on every rank. Raises LossScaleError after too many skipped steps in a row, and
        FloatingPointError at once where there is no scaling.
        """
        if not self.enabled:
            if not finite:
                raise FloatingPointError(
                    f"step {step}: the loss or a gradient is not finite;"
                    " lower optimizer.learning_rate or check the data"
                )
            return True
        if finite:
            self._count_good_step()
            return True
        self._count_skipped_step(step)
        return False

    def _count_good_step(self) -> None:
        self.skipped_steps = 0
        self.good_steps += 1
        if self.good_steps == _GROWTH_INTERVAL:
            self.good_steps = 0
            self.scale = min(self.scale * _FACTOR, _LARGEST_SCALE)

    def _count_skipped_step(self, step: int) -> None:
        self.good_steps = 0
        self.skipped_steps += 1
        self.scale /= _FACTOR
        if self.skipped_steps > _MAX_SKIPPED:
            raise LossScaleError(
                f"step {step}: gradients were not finite {self.skipped_steps} times in a row, down to a loss scale of"
                f" {self.scale:g}; use precision BF16 or FP32, or a lower optimizer.learning_rate"
            )

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"scale": self.scale, "good_steps": self.good_steps, "skipped_steps": self.skipped_steps}

    def load(self, state: dict[str, float]) -> None:
        """Takes over a checkpoint's state."""
        self.scale = float(state["scale"])
        self.good_steps = int(state["good_steps"])
        self.skipped_steps = int(state["skipped_steps"])
