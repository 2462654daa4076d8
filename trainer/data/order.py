"""Which blocks make which step: a pure function of seed and step, whatever the number of ranks.

The blocks of a split form an endless stream: every epoch is one permutation of all blocks, drawn from (seed, epoch),
and the epochs follow each other without a gap. Step s takes the next `global_blocks` of the stream, so a batch may
reach from one epoch into the next, and each block is seen exactly once an epoch. A run of `epochs` ends after
`round(epochs * num_blocks)` blocks; its last batch is smaller when they do not divide. The position in the data is
therefore just the number of blocks taken, and follows from the step. When the trainer packs on the fly, the stream
is that of `plan`, and the order follows it.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math

import numpy as np

from finecut.trainer.config import TrainingConfig
from finecut.trainer.data.plan import PackingPlan


@dataclasses.dataclass(frozen=True)
class Order(abc.ABC):
    """A stream of blocks cut into steps. An epoch has `num_blocks` (the first one, where they differ).

    `end` is where it stops, in blocks; None: never.
    """

    num_blocks: int
    global_blocks: int
    seed: int
    end: int | None

    @abc.abstractmethod
    def batch(self, step: int) -> np.ndarray:
        """Block indices of `step` (from 1), at most `global_blocks` of them."""

    def total_steps(self, max_steps: int | None) -> int:
        """Steps in the run: `max_steps`, else as many as the stream lasts."""
        if self.end is None:
            assert max_steps is not None, "a run has max_steps or epochs"
            return max_steps
        return math.ceil(self.end / self.global_blocks)

    def position(self, step: int) -> int:
        """Blocks taken from the stream by the steps up to and including `step`."""
        taken = step * self.global_blocks
        return taken if self.end is None else min(taken, self.end)


class BlockOrder(Order):
    """Over blocks that were packed beforehand."""

    @classmethod
    def of(cls, training: TrainingConfig, num_blocks: int) -> BlockOrder:
        """The order of a training run over `num_blocks` blocks."""
        end = None if training.epochs is None else max(1, round(training.epochs * num_blocks))
        return cls(num_blocks, training.global_blocks, training.seed, end)

    def batch(self, step: int) -> np.ndarray:
        """Block indices of `step` (from 1), at most `global_blocks` of them."""
        places = (divmod(p, self.num_blocks) for p in range(self.position(step - 1), self.position(step)))
        return np.array([self._permutation(epoch)[offset] for epoch, offset in places], dtype=np.int64)

    def _permutation(self, epoch: int) -> np.ndarray:
        return _permutation(self.num_blocks, self.seed, epoch)


class PlannedOrder(Order):
    """Over blocks packed on the fly: an index is a position in the stream of the plan, which is shuffled already."""

    @classmethod
    def of(cls, training: TrainingConfig, plan: PackingPlan) -> PlannedOrder:
        """The order of a training run over the documents of `plan`."""
        end = None if training.epochs is None else max(1, plan.blocks_in(training.epochs))
        return cls(plan.blocks_in(epochs=1), training.global_blocks, training.seed, end)

    def batch(self, step: int) -> np.ndarray:
        """Positions of the blocks of `step` (from 1), at most `global_blocks` of them."""
        return np.arange(self.position(step - 1), self.position(step))


@functools.lru_cache(maxsize=2)  # a batch touches two epochs at most, unless it is larger than the data
def _permutation(num_blocks: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_blocks)
