"""A teacher as the loss asks it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.ops.cross_entropy import TrainedTokens
from finecut.trainer.ops.distillation import TeacherStates
from finecut.trainer.ops.kept_tokens import KeptTokens
from finecut.trainer.parallel import gathering
from finecut.trainer.recipes.documents import head_config, inputs_of


class Teacher(Protocol):
    """Says what follows each trained token."""

    def says(
        self, batch: MicroBatch, trained: TrainedTokens
    ) -> contextlib.AbstractContextManager[TeacherStates | KeptTokens]:
        """Of the batch's trained tokens, in their order; it holds within the context. Collective."""


@dataclasses.dataclass(frozen=True)
class LiveTeacher:
    """A model beside the student."""

    model: Decoder

    @contextlib.contextmanager
    def says(self, batch: MicroBatch, trained: TrainedTokens) -> Iterator[TeacherStates]:
        """Its hidden states, by a forward pass."""
        with torch.no_grad():
            hidden_NE = self.model(*inputs_of(batch), read_out=_Trained(trained))
        yield TeacherStates(hidden_NE, self.model.head_weight(), head_config(self.model))
        # FSDP2 left the root unit, and with it the head, gathered.
        gathering.reshard(self.model)


@dataclasses.dataclass(frozen=True)
class _Trained:
    """Reads a decoder out as its hidden states at trained positions, [N, E]."""

    trained: TrainedTokens

    def __call__(self, model: Decoder, hidden_BLE: Tensor) -> Tensor:
        return hidden_BLE.flatten(0, 1)[self.trained.position_N]
