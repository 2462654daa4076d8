"""Which blocks make which step: a pure function of seed and step, whatever the number of ranks.

The blocks of a split form an endless stream: every epoch is one permutation of all blocks, drawn from (seed, epoch),
and the epochs follow each other without a gap. Step s takes the next `global_blocks` of the stream, so a batch may
reach from one epoch into the next, and each block is seen exactly once an epoch. A run of `epochs` ends after
`round(epochs * num_blocks)` blocks; its last batch is smaller when they do not divide. The position in the data is
therefore just the number of blocks taken, and follows from the step.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from finecut.trainer.config import TrainingConfig


@dataclasses.dataclass(frozen=True)
class BlockOrder:
    """The stream of block indices. `end` is where it stops, in blocks; None: never."""

    num_blocks: int
    global_blocks: int
    seed: int
    end: int | None

    @classmethod
    def of(cls, training: TrainingConfig, num_blocks: int) -> BlockOrder:
        """The order of a training run over `num_blocks` blocks."""
        end = None if training.epochs is None else max(1, round(training.epochs * num_blocks))
        return cls(num_blocks, training.global_blocks, training.seed, end)

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

    def batch(self, step: int) -> np.ndarray:
        """Block indices of `step` (from 1), at most `global_blocks` of them."""
        places = (divmod(p, self.num_blocks) for p in range(self.position(step - 1), self.position(step)))
        return np.array([self._permutation(epoch)[offset] for epoch, offset in places], dtype=np.int64)

    def _permutation(self, epoch: int) -> np.ndarray:
        return _permutation(self.num_blocks, self.seed, epoch)


@functools.lru_cache(maxsize=2)  # a batch touches two epochs at most, unless it is larger than the data
def _permutation(num_blocks: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_blocks)
