"""State of a run beside its tensors: the protocol by which a recipe adds its own, and the generators that all have.

A part of a reinforcement learning recipe might look like this:

    class PolicyVersion:
        every_rank = False
        def capture(self): return {"version": self.version}
        def restore(self, states, step): self.version = states[0]["version"]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from finecut.trainer.checkpoint import random_state


class Part(Protocol):
    """Something that a checkpoint keeps. `every_rank` False: all ranks hold the same, and rank 0's is kept."""

    every_rank: bool

    def capture(self) -> dict[str, Any]:
        """What to keep: plain values and tensors, which must not change afterwards."""

    def restore(self, states: Sequence[dict[str, Any]], step: int) -> None:
        """Takes over what was captured after `step`: one state a rank of that time, or one where ranks hold the same.

        The number of ranks may be another now. States are read when they are looked at.
        """


class RandomGenerators:
    """The random generators of this rank. Where the number of ranks changes, they are seeded anew from the step."""

    every_rank = True

    def __init__(self, seed: int, rank: int, world_size: int) -> None:
        self._seed = seed
        self._rank = rank
        self._world_size = world_size

    def capture(self) -> dict[str, Any]:
        return random_state.capture()

    def restore(self, states: Sequence[dict[str, Any]], step: int) -> None:
        if len(states) == self._world_size:
            random_state.restore(states[self._rank])
        else:
            random_state.seed(self._seed, self._rank, step)
