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
from finecut.trainer.parallel.process_group import Devices


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
    """The random generators of this rank. Where the number of data ranks changes, they are seeded anew from the step.

    Ranks of one tensor-parallel group draw the same numbers, so the state of one of them serves each.
    """

    every_rank = True

    def __init__(self, seed: int, devices: Devices) -> None:
        self._seed = seed
        self._devices = devices

    def capture(self) -> dict[str, Any]:
        return {"tensor_size": self._devices.tensor_size, "generators": random_state.capture()}

    def restore(self, states: Sequence[dict[str, Any]], step: int) -> None:
        tensor_size = states[0]["tensor_size"]
        if len(states) == self._devices.data_size * tensor_size:
            random_state.restore(states[self._devices.data_rank * tensor_size]["generators"])
        else:
            random_state.seed(self._seed, self._devices.data_rank, step)
