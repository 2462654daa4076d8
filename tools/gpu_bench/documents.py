"""Random documents in micro-batches, as the trainer's data would give them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from finecut.tools.gpu_bench.cases import Case
from finecut.trainer.data.batches import IGNORED, MicroBatch, TokenCounts


@dataclasses.dataclass(frozen=True)
class BenchBatch:
    """A micro-batch, and the lengths of its documents."""

    batch: MicroBatch
    lengths: list[int]


def make_batch(case: Case, random: np.random.Generator, device: torch.device) -> BenchBatch:
    """One micro-batch of `case`: every text token but a document's first is a target."""
    rows = [row_lengths(case, random) for _ in range(case.micro_blocks)]
    input_ids_BL = random.integers(0, case.shape.vocabulary_size, (case.micro_blocks, case.block))
    document_ids_BL = np.full_like(input_ids_BL, -1)
    position_ids_BL = np.zeros_like(input_ids_BL)
    targets_BL = np.full_like(input_ids_BL, IGNORED)
    for row, lengths in enumerate(rows):
        begin = 0
        for number, length in enumerate(lengths):
            document_ids_BL[row, begin : begin + length] = number
            position_ids_BL[row, begin : begin + length] = np.arange(length)
            targets_BL[row, begin : begin + length - 1] = input_ids_BL[row, begin + 1 : begin + length]
            begin += length
    every = [length for lengths in rows for length in lengths]
    tokens = TokenCounts(trained=int((targets_BL != IGNORED).sum()), useful=sum(every), padded=input_ids_BL.size)
    batch = MicroBatch(
        input_ids_BL=torch.from_numpy(input_ids_BL),
        position_ids_BL=torch.from_numpy(position_ids_BL),
        document_ids_BL=torch.from_numpy(document_ids_BL),
        targets_BL=torch.from_numpy(targets_BL),
        tokens=tokens,
    )
    return BenchBatch(batch.to(device), every)


def row_lengths(case: Case, random: np.random.Generator) -> list[int]:
    """Documents of one row. Packed, the last one is cut at the row's end, so that rows are full."""
    if case.median is None:
        return [case.block]
    lengths: list[int] = []
    while sum(lengths) < case.block:
        length = int(np.clip(random.lognormal(np.log(case.median), 1.0), 2, case.block))
        lengths.append(min(length, case.block - sum(lengths)))
        if case.padded:
            break
    return lengths
