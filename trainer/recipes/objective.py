"""What a supervised recipe minimises: a sum over units (trained tokens, pairs) that the loop divides once a step.

micro-batch -> Objective.losses -> Losses: a sum to differentiate, sums to report
                                   ... over micro-batches and ranks, / units of the whole step -> Objective.metrics
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.models.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Losses:
    """Of one micro-batch: the loss summed over its units, and other sums, which have the same names and shapes always.

    Sums are detached. A batch that is all padding gives zeros, and a loss with zero gradients.
    """

    loss: Tensor
    sums: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


class Objective(Protocol):
    """One recipe's loss. Called in the same order on every rank. See `NothingKept` for objectives without a state."""

    def num_units(self, batch: MicroBatch) -> int:
        """How many things the loss of this micro-batch is a sum over."""

    def losses(self, model: Decoder, batch: MicroBatch, gradient_scale: float) -> Losses:
        """The losses of a micro-batch. `gradient_scale` is what the loss is multiplied by before its backward pass."""

    def metrics(self, sums: Mapping[str, Tensor], num_units: int) -> dict[str, float]:
        """What is reported beside the loss, of sums over all ranks (FP64, on the host)."""

    def resumed(self, step: int) -> None:
        """Before the first step, the one after `step`. Collective."""

    def step_done(self, step: int) -> None:
        """After the last micro-batch of training step `step`, before the optimizer."""

    def before_checkpoint(self, step: int) -> None:
        """Before the state after `step` is written. Collective."""


class NothingKept:
    """The part of an objective that keeps nothing from step to step."""

    # Whether it is about single tokens of the data, so that the cross entropy of each says which are hard.
    is_of_tokens = False

    def resumed(self, step: int) -> None:
        """Nothing to do."""

    def step_done(self, step: int) -> None:
        """Nothing to do."""

    def before_checkpoint(self, step: int) -> None:
        """Nothing to do."""


class CrossEntropy(NothingKept):
    """Cross entropy of the trained tokens, in nats; what supervised fine-tuning minimises."""

    is_of_tokens = True

    def num_units(self, batch: MicroBatch) -> int:
        """Trained tokens."""
        return batch.tokens.trained

    def losses(self, model: Decoder, batch: MicroBatch, gradient_scale: float) -> Losses:
        """Nothing but the loss."""
        ids = (batch.input_ids_BL, batch.position_ids_BL, batch.document_ids_BL, batch.targets_BL)
        return Losses(model(*ids, gradient_scale=gradient_scale))

    def metrics(self, sums: Mapping[str, Tensor], num_units: int) -> dict[str, float]:
        """None."""
        return {}


def means(sums: Mapping[str, Tensor], num_units: int) -> dict[str, float]:
    """Scalar sums, a unit."""
    return {name: float(value) / max(1, num_units) for name, value in sums.items() if value.ndim == 0}


def add(total: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    """Adds sums up in FP64, in place."""
    for name, value in sums.items():
        value = value.detach().to(torch.float64)
        total[name] = total[name] + value if name in total else value
