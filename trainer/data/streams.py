"""The endless stream of blocks of one source: epoch after epoch, each block or document once in each.

A pure function of seed and position, so that what was taken follows from how many blocks were.
"""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np

from finecut.trainer.data.plan import PackingPlan

_KEPT_EPOCHS = 2  # a batch touches two epochs at most, unless it is larger than the data


class Stream(Protocol):
    """Blocks of one source by position from 0. A row is what shards hold: a block, or a document."""

    @property
    def num_blocks(self) -> int:
        """Blocks in the first epoch."""

    def index(self, position: int) -> int:
        """What the reader calls the block at this position."""

    def rows(self, position: int) -> np.ndarray:
        """The rows of the block at this position, int64."""

    def times_taken(self, position: int) -> np.ndarray:
        """How often the blocks before this position hold each row, int64 [rows of the split]."""


class BlockStream:
    """Blocks that were packed beforehand: those of `blocks_N`, among `num_rows` of the split."""

    def __init__(self, blocks_N: np.ndarray, num_rows: int, seed: int) -> None:
        self._blocks_N = blocks_N
        self._num_rows = num_rows
        self._seed = seed
        self._permutation = functools.lru_cache(maxsize=_KEPT_EPOCHS)(self._permute)

    @property
    def num_blocks(self) -> int:
        return len(self._blocks_N)

    def index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._blocks_N))
        return int(self._permutation(epoch)[offset])

    def rows(self, position: int) -> np.ndarray:
        return np.array([self.index(position)], np.int64)

    def times_taken(self, position: int) -> np.ndarray:
        epoch, offset = divmod(position, len(self._blocks_N))
        times: np.ndarray = np.zeros(self._num_rows, np.int64)
        times[self._blocks_N] = epoch
        times[self._permutation(epoch)[:offset]] += 1
        return times

    def _permute(self, epoch: int) -> np.ndarray:
        return self._blocks_N[np.random.default_rng([self._seed, epoch]).permutation(len(self._blocks_N))]


class PlanStream:
    """Blocks packed on the fly. The reader's index holds the position and which of `num_plans` plans it belongs to."""

    def __init__(self, plan: PackingPlan, number: int = 0, num_plans: int = 1) -> None:
        self._plan = plan
        self._number = number
        self._num_plans = num_plans

    @property
    def num_blocks(self) -> int:
        return self._plan.blocks_in(epochs=1)

    def index(self, position: int) -> int:
        return position * self._num_plans + self._number

    def rows(self, position: int) -> np.ndarray:
        return self._plan.block(position)

    def times_taken(self, position: int) -> np.ndarray:
        return self._plan.times_taken(position)


def seed_of_source(seed: int, number: int) -> int:
    """A seed for each of several sources, so that none is shuffled like another."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])
