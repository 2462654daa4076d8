"""Which rank takes which blocks of a batch: the same number of micro-batches each, and even attention work.

Attention costs the sum of squared document lengths, which differs between blocks of equal size by far more than the
rest of the work, and every rank waits for the slowest. Which blocks make a batch is decided elsewhere; here they only
change places, so that the gradient of a step, a sum over the batch, stays what it is.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Sequence

import numpy as np

PADDING = -1  # in an assignment: no block, so that all ranks run the same number of micro-batches


@dataclasses.dataclass(frozen=True)
class Imbalance:
    """Attention work of the busiest rank over the mean of all ranks, at least 1: blocks in order, and balanced."""

    in_order: float
    balanced: float


def assign_in_order(batch: np.ndarray, world_size: int, micro_blocks: int) -> np.ndarray:
    """A global batch cut in order: indices [world_size, num_micro_batches, micro_blocks], PADDING where there is none.

    Micro-batch 0 of rank 0, of rank 1, ..., then micro-batch 1.
    """
    unit = world_size * micro_blocks
    padded: np.ndarray = np.full(math.ceil(len(batch) / unit) * unit, PADDING, dtype=np.int64)
    padded[: len(batch)] = batch
    return padded.reshape(-1, world_size, micro_blocks).swapaxes(0, 1)


def assign_balanced(batch: np.ndarray, work: np.ndarray, world_size: int, micro_blocks: int) -> np.ndarray:
    """The same blocks in the same shape, with even work: `work[i]` is that of `batch[i]`, in any unit.

    The heaviest block goes first, each to the rank with the least work that has room (Graham, 1969). A rank takes its
    blocks in descending order, so that the micro-batches that ranks run side by side are alike too. A pure function of
    its arguments. With one rank there is nothing to balance, and the blocks stay in order.
    """
    if world_size == 1:
        return assign_in_order(batch, world_size, micro_blocks)
    num_micro_batches = math.ceil(len(batch) / (world_size * micro_blocks))
    shares: list[list[int]] = [[] for _ in range(world_size)]
    ranks = [(0, rank) for rank in range(world_size)]  # a heap of (work, rank), of ranks that have room
    for place in np.argsort(-work, kind="stable"):
        load, rank = heapq.heappop(ranks)
        shares[rank].append(int(batch[place]))
        if len(shares[rank]) < num_micro_batches * micro_blocks:
            heapq.heappush(ranks, (load + int(work[place]), rank))
    assignment: np.ndarray = np.full((world_size, num_micro_batches * micro_blocks), PADDING, dtype=np.int64)
    for rank, share in enumerate(shares):
        assignment[rank, : len(share)] = share
    return assignment.reshape(world_size, num_micro_batches, micro_blocks)


def assign(batch: np.ndarray, work: np.ndarray, world_size: int, micro_blocks: int) -> tuple[np.ndarray, Imbalance]:
    """The more even of both assignments, so that balancing never makes a step slower, and how even they are."""
    work_of_block = dict(zip(batch.tolist(), work.tolist(), strict=True))
    in_order = assign_in_order(batch, world_size, micro_blocks)
    balanced = assign_balanced(batch, work, world_size, micro_blocks)
    before, after = (imbalance_of(assignment, work_of_block) for assignment in (in_order, balanced))
    if after > before:
        return in_order, Imbalance(before, before)
    return balanced, Imbalance(before, after)


def imbalance_of(assignment: np.ndarray, work_of_block: dict[int, int]) -> float:
    """Work of the busiest rank over the mean of all ranks; 1 where there is none."""
    loads = [sum(work_of_block[int(block)] for block in rank.ravel() if block != PADDING) for rank in assignment]
    return max(loads) / (sum(loads) / len(loads)) if any(loads) else 1.0


def mean(imbalances: Sequence[Imbalance]) -> Imbalance:
    """The mean over steps; at least one."""
    in_order = sum(imbalance.in_order for imbalance in imbalances) / len(imbalances)
    return Imbalance(in_order, sum(imbalance.balanced for imbalance in imbalances) / len(imbalances))
