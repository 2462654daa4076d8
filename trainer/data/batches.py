"""Micro-batches of one rank: token, position and document ids, and the target of each position.

Shapes: B blocks, L tokens a block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from finecut.dataprep.shards import BlockReader, Blocks
from finecut.trainer.data import balance
from finecut.trainer.data.balance import PADDING, Imbalance
from finecut.trainer.data.order import Order
from finecut.trainer.data.prefetch import Prefetch
from finecut.trainer.parallel.process_group import Devices

IGNORED = -100  # target of a position that is not trained


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """Tokens of a batch: those that are predicted in the loss, those that are text, and all places with padding."""

    trained: int = 0
    useful: int = 0
    padded: int = 0

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(self.trained + other.trained, self.useful + other.useful, self.padded + other.padded)


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes; `tokens` counts this micro-batch."""

    input_ids_BL: torch.Tensor  # int64
    position_ids_BL: torch.Tensor  # int64; restarts at 0 for each document
    document_ids_BL: torch.Tensor  # int64; -1 on padding
    targets_BL: torch.Tensor  # int64; IGNORED where not trained
    tokens: TokenCounts

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`."""
        return MicroBatch(
            input_ids_BL=self.input_ids_BL.to(device, non_blocking=True),
            position_ids_BL=self.position_ids_BL.to(device, non_blocking=True),
            document_ids_BL=self.document_ids_BL.to(device, non_blocking=True),
            targets_BL=self.targets_BL.to(device, non_blocking=True),
            tokens=self.tokens,
        )


@dataclasses.dataclass(frozen=True)
class StepBatch:
    """One rank's part of a step; equally many micro-batches on every rank. `imbalance` is over all ranks."""

    micro_batches: list[MicroBatch]
    imbalance: Imbalance


class TrainingReader(BlockReader, Protocol):
    """Blocks that know what they cost."""

    def attention_work(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Sum of the squared document lengths of each of these blocks, int64 [N]. Reads no tokens."""


def targets_of(blocks: Blocks) -> np.ndarray:
    """Targets [N, L]: at t the token t+1, where that is in the loss and in the same document; else IGNORED."""
    targets_NL = np.full(blocks.input_ids_NL.shape, IGNORED, dtype=np.int64)
    same_document = blocks.document_id_NL[:, 1:] == blocks.document_id_NL[:, :-1]
    trained = blocks.loss_mask_NL[:, 1:] & same_document & (blocks.document_id_NL[:, 1:] >= 0)
    targets_NL[:, :-1][trained] = blocks.input_ids_NL[:, 1:][trained]
    return targets_NL


class Batches:
    """The batches of one split for one rank, by step up to `last_step`, on its device.

    Steps are loaded in a thread ahead of their use, from the first `step` on, until `close`.
    """

    def __init__(
        self, reader: TrainingReader, order: Order, micro_blocks: int, devices: Devices, last_step: int = 0
    ) -> None:
        self._ahead = Prefetch(self._load_step, last_step)
        self._reader = reader
        self._order = order
        self._micro_blocks = micro_blocks
        self._devices = devices

    def step(self, step: int) -> StepBatch:
        """This rank's part of a training step (from 1)."""
        loaded = self._ahead.take(step)
        return StepBatch([batch.to(self._devices.device) for batch in loaded.micro_batches], loaded.imbalance)

    def close(self) -> None:
        """Ends the thread that loads ahead."""
        self._ahead.close()

    def survey(self, first_step: int, last_step: int) -> Imbalance:
        """Mean imbalance over these steps. Called before the first `step`: readers serve one thread."""
        batches = map(self._order.batch, range(first_step, last_step + 1))
        return balance.mean([self._assign(batch)[1] for batch in batches])

    def first(self, max_blocks: int | None) -> Iterator[MicroBatch]:
        """This rank's share of the split's first `max_blocks` blocks (None: all), in their stored order."""
        num_blocks = len(self._reader) if max_blocks is None else min(max_blocks, len(self._reader))
        shape = (self._devices.data_size, self._micro_blocks)
        for micro_batch in self._load(balance.assign_in_order(np.arange(num_blocks), *shape)):
            yield micro_batch.to(self._devices.device)

    def _load_step(self, step: int) -> StepBatch:
        assignment, imbalance = self._assign(self._order.batch(step))
        return StepBatch(list(self._load(assignment)), imbalance)

    def _assign(self, batch: np.ndarray) -> tuple[np.ndarray, Imbalance]:
        """Which rank takes which blocks of a global batch; every rank computes the same from the lengths alone."""
        work = self._reader.attention_work(batch)
        return balance.assign(batch, work, self._devices.data_size, self._micro_blocks)

    def _load(self, assignment: np.ndarray) -> Iterator[MicroBatch]:
        for indices in assignment[self._devices.data_rank]:
            yield self._micro_batch(indices, spare=int(assignment.max()))

    def _micro_batch(self, indices: np.ndarray, spare: int) -> MicroBatch:
        own = [int(index) for index in indices if index != PADDING]
        # A rank that ran out of blocks still takes part in every collective: it runs a block that counts for nothing.
        blocks = self._reader.read(own or [spare])
        targets_NL = targets_of(blocks) if own else np.full(blocks.input_ids_NL.shape, IGNORED)
        tokens = TokenCounts(
            trained=int((targets_NL != IGNORED).sum()),
            useful=int((blocks.document_id_NL >= 0).sum()) if own else 0,
            padded=len(indices) * self._reader.block_size,
        )
        return MicroBatch(
            input_ids_BL=self._tensor(blocks.input_ids_NL, len(indices), fill=0),
            position_ids_BL=self._tensor(blocks.position_id_NL, len(indices), fill=0),
            document_ids_BL=self._tensor(blocks.document_id_NL, len(indices), fill=-1),
            targets_BL=self._tensor(targets_NL, len(indices), fill=IGNORED),
            tokens=tokens,
        )

    def _tensor(self, values_NL: np.ndarray, num_blocks: int, fill: int) -> torch.Tensor:
        """With blocks of `fill` where the batch had none left for this rank."""
        padded_BL = np.full((num_blocks, values_NL.shape[1]), fill, dtype=np.int64)
        padded_BL[: len(values_NL)] = values_NL
        return torch.from_numpy(padded_BL)
