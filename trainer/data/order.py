"""Which blocks make which step: a pure function of seed and step, whatever the number of ranks.

The blocks of a split form an endless stream: every epoch is one permutation of all blocks, drawn from (seed, epoch),
and the epochs follow each other without a gap. Step s takes the next `global_blocks` of the stream, so a batch may
reach from one epoch into the next, and each block is seen exactly once an epoch. A run of `epochs` ends after
`round(epochs * num_blocks)` blocks; its last batch is smaller when they do not divide. The position in the data is
therefore just the number of blocks taken, and follows from the step.

When the trainer packs on the fly, the stream is that of `plan`. When the job mixes sources, each has a stream of its
own, and `mix` says which of them the next block comes from.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math

import numpy as np

from finecut.trainer.config import TrainingConfig
from finecut.trainer.data.mix import Mix
from finecut.trainer.data.plan import PackingPlan
from finecut.trainer.data.streams import BlockStream, PlanStream, Stream


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
    def locate(self, position: int) -> tuple[Stream, int]:
        """Where the block at this position of the run comes from: a stream, and the position in that."""

    @abc.abstractmethod
    def times_taken(self, step: int) -> np.ndarray:
        """How often the steps up to and including `step` take each row of the split (a block, or a document), int64."""

    def batch(self, step: int) -> np.ndarray:
        """What the reader calls the blocks of `step` (from 1), at most `global_blocks` of them; int64."""
        return np.array([stream.index(at) for stream, at in self._places(step)], dtype=np.int64)

    def rows(self, step: int) -> np.ndarray:
        """The rows in the blocks of `step`, each as often as it is taken."""
        return np.concatenate([stream.rows(at) for stream, at in self._places(step)])

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

    def _places(self, step: int) -> list[tuple[Stream, int]]:
        return [self.locate(position) for position in range(self.position(step - 1), self.position(step))]


class BlockOrder(Order):
    """Over blocks that were packed beforehand."""

    @classmethod
    def of(cls, training: TrainingConfig, num_blocks: int) -> BlockOrder:
        """The order of a training run over `num_blocks` blocks."""
        return cls(num_blocks, training.global_blocks, training.seed, _end(training, num_blocks))

    def locate(self, position: int) -> tuple[Stream, int]:
        return self._stream, position

    def times_taken(self, step: int) -> np.ndarray:
        return self._stream.times_taken(self.position(step))

    @functools.cached_property
    def _stream(self) -> BlockStream:
        return BlockStream(np.arange(self.num_blocks), self.num_blocks, self.seed)


@dataclasses.dataclass(frozen=True)
class PlannedOrder(Order):
    """Over blocks packed on the fly: an index is a position in the stream of the plan, which is shuffled already."""

    plan: PackingPlan

    @classmethod
    def of(cls, training: TrainingConfig, plan: PackingPlan) -> PlannedOrder:
        """The order of a training run over the documents of `plan`."""
        end = None if training.epochs is None else max(1, plan.blocks_in(training.epochs))
        return cls(plan.blocks_in(epochs=1), training.global_blocks, training.seed, end, plan)

    def locate(self, position: int) -> tuple[Stream, int]:
        return self._stream, position

    def times_taken(self, step: int) -> np.ndarray:
        return self._stream.times_taken(self.position(step))

    @functools.cached_property
    def _stream(self) -> PlanStream:
        return PlanStream(self.plan)


@dataclasses.dataclass(frozen=True)
class MixedOrder(Order):
    """Over several sources, one stream each."""

    mix: Mix
    streams: tuple[Stream, ...]

    @classmethod
    def of(cls, training: TrainingConfig, mix: Mix, streams: tuple[Stream, ...]) -> MixedOrder:
        """The order of a training run over `mix`; `streams[i]` is that of its i-th part."""
        end = _end(training, mix.num_blocks)
        return cls(mix.num_blocks, training.global_blocks, training.seed, end, mix, streams)

    def locate(self, position: int) -> tuple[Stream, int]:
        source, at = self.mix.place(position)
        return self.streams[source], at

    def times_taken(self, step: int) -> np.ndarray:
        taken = self.mix.taken(self.position(step)).tolist()
        counts = [stream.times_taken(blocks) for stream, blocks in zip(self.streams, taken, strict=True) if blocks]
        # No stream has a row of another's.
        return np.sum(counts, axis=0) if counts else np.zeros(1, np.int64)


def _end(training: TrainingConfig, num_blocks: int) -> int | None:
    return None if training.epochs is None else max(1, round(training.epochs * num_blocks))
