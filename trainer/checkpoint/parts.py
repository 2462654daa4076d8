"""State of a run beside its tensors: the protocol by which a recipe adds its own, and the generators that all have.

A part of a reinforcement learning recipe might look like this:

    class PolicyVersion:
        every_rank = False
        def capture(self): return {"version": self.version}
        def restore(self, states, step): self.version = states[0]["version"]
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Protocol, overload

import torch

from finecut.trainer.checkpoint import random_state
from finecut.trainer.checkpoint.location import Location
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


class SavedStates(Sequence[dict[str, Any]]):
    """The states of one part, read when they are looked at. Reading one runs no code."""

    def __init__(self, location: Location, paths: list[str]) -> None:
        self._location = location
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        with self._location.open(self._paths[index]) as file:
            loaded: dict[str, Any] = torch.load(io.BytesIO(file.read()), weights_only=True)
        return loaded
