"""Answers with their prompts, packed into rows: what one rank computes of a batch of rollouts.

Shapes: N answers, T tokens of the longest answer, B rows of a micro-batch, L tokens a row.

    values [N, T] -- fetch --> [B, L], at the position that predicts the token -- put_back --> [N, T]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from finecut.proto.config import UserError
from finecut.trainer.data.batches import IGNORED, MicroBatch, TokenCounts
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.rollout.sample import Sample


@dataclasses.dataclass(frozen=True)
class AnswerBatch(MicroBatch):
    """A micro-batch whose documents are answers with their prompts; targets are the tokens that the policy sampled."""

    # Where the target's values are in flattened [N, T]; -1 where there is no target.
    place_BL: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    num_answers: int = 0

    def to(self, device: torch.device) -> AnswerBatch:
        """The same on `device`."""
        moved = super().to(device)
        assert isinstance(moved, AnswerBatch)
        return dataclasses.replace(moved, place_BL=self.place_BL.to(device, non_blocking=True))

    def fetch(self, values_NT: Tensor) -> Tensor:
        """[B * L]: the value of each target; 0 where there is none."""
        place_T = self.place_BL.flatten()
        return values_NT.flatten()[place_T.clamp(min=0)].where(place_T >= 0, 0)

    def put_back(self, values_T: Tensor, into_NT: Tensor) -> None:
        """Writes values of this micro-batch to their places."""
        place_T = self.place_BL.flatten()
        into_NT.view(-1)[place_T[place_T >= 0]] = values_T[place_T >= 0].to(into_NT.dtype)


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit decreasing: which sequences lie in which row. Raises UserError for one that is longer than a row."""
    rows: list[list[int]] = []
    free: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        if lengths[n] > capacity:
            raise UserError(f"a prompt with its answer has {lengths[n]:,} tokens, more than the {capacity:,} of a row")
        row = next((row for row, room in enumerate(free) if room >= lengths[n]), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(capacity)
        rows[row].append(n)
        free[row] -= lengths[n]
    return rows


def micro_batches(
    samples: Sequence[Sample], chosen: Sequence[int], capacity: int, micro_rows: int, devices: Devices
) -> list[AnswerBatch]:
    """This rank's share of the `chosen` samples, on its device: equally many micro-batches on every rank.

    Args:
      capacity: tokens a row.
      micro_rows: rows of a micro-batch.
    """
    longest = max(len(sample.answer_ids) for sample in samples)
    lengths = [len(samples[n].prompt_ids) + len(samples[n].answer_ids) for n in chosen]
    rows = [[chosen[i] for i in row] for row in pack(lengths, capacity)]
    own = _share(rows, samples, micro_rows, devices)
    batches = []
    for first in range(0, len(own), micro_rows):
        built = [_Row.of(row, samples, longest, capacity, counts) for row, counts in own[first : first + micro_rows]]
        batches.append(_stack(built).to(devices.device))
    return batches


def _share(
    rows: list[list[int]], samples: Sequence[Sample], micro_rows: int, devices: Devices
) -> list[tuple[list[int], bool]]:
    """Rows of this rank, and whether each counts: dealt by attention work, there and back again.

    A rank that would have fewer computes the first row once more, which counts for nothing: all take part in every
    collective.
    """
    size = devices.data_size
    work = [sum((len(samples[n].prompt_ids) + len(samples[n].answer_ids)) ** 2 for n in row) for row in rows]
    order = sorted(range(len(rows)), key=lambda row: (-work[row], row))
    num_own = -(-len(rows) // (size * micro_rows)) * micro_rows
    own: list[tuple[list[int], bool]] = []
    for turn in range(num_own):
        place = turn * size + (devices.data_rank if turn % 2 == 0 else size - 1 - devices.data_rank)
        own.append((rows[order[place]], True) if place < len(rows) else (rows[0], False))
    return own


@dataclasses.dataclass(frozen=True)
class _Row:
    """One row, as the fields of AnswerBatch."""

    input_ids_L: np.ndarray
    position_ids_L: np.ndarray
    document_ids_L: np.ndarray
    targets_L: np.ndarray
    place_L: np.ndarray
    num_answers: int
    lengths: tuple[int, ...]  # of its documents, where it counts

    @staticmethod
    def of(row: Sequence[int], samples: Sequence[Sample], longest: int, capacity: int, counts: bool) -> _Row:
        """Documents side by side; without targets where the row does not count."""
        input_ids_L: np.ndarray = np.zeros(capacity, np.int64)
        position_ids_L: np.ndarray = np.zeros(capacity, np.int64)
        document_ids_L: np.ndarray = np.full(capacity, -1, np.int64)
        targets_L: np.ndarray = np.full(capacity, IGNORED, np.int64)
        place_L: np.ndarray = np.full(capacity, -1, np.int64)
        begin, lengths = 0, []
        for document, n in enumerate(row):
            sample = samples[n]
            ids = np.asarray(sample.prompt_ids + sample.answer_ids)
            end = begin + len(ids)
            input_ids_L[begin:end] = ids
            position_ids_L[begin:end] = np.arange(len(ids))
            document_ids_L[begin:end] = document
            if counts:
                sampled = np.flatnonzero(np.asarray(sample.loss_mask))
                # A token is predicted at the position before it.
                at = begin + len(sample.prompt_ids) + sampled - 1
                targets_L[at] = np.asarray(sample.answer_ids)[sampled]
                place_L[at] = n * longest + sampled
            begin = end
            lengths.append(len(ids))
        own = tuple(lengths) if counts else ()
        return _Row(input_ids_L, position_ids_L, document_ids_L, targets_L, place_L, len(own), own)


def _stack(rows: Sequence[_Row]) -> AnswerBatch:
    def tensor(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(row, name) for row in rows]))

    targets_BL, document_ids_BL = tensor("targets_L"), tensor("document_ids_L")
    counts = TokenCounts(
        trained=int((targets_BL != IGNORED).sum()),
        useful=sum(int((row.document_ids_L >= 0).sum()) for row in rows if row.num_answers),
        padded=targets_BL.numel(),
    )
    return AnswerBatch(
        input_ids_BL=tensor("input_ids_L"),
        position_ids_BL=tensor("position_ids_L"),
        document_ids_BL=document_ids_BL,
        targets_BL=targets_BL,
        tokens=counts,
        document_lengths=np.array([length for row in rows for length in row.lengths], np.int64),
        place_BL=tensor("place_L"),
        num_answers=sum(row.num_answers for row in rows),
    )
