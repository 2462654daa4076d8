"""The actors of a fleet's engines, in places of their own or in the trainer's."""

from __future__ import annotations

import dataclasses
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from finecut.trainer.rollout import engine_group
from finecut.trainer.rollout.engine_config import EngineConfig, EngineDiedError
from finecut.trainer.rollout.engine_group import Seat, Share

# Ray answers at once; it wants a time above 0.
_LOOK_S = 0.1


@dataclasses.dataclass(frozen=True)
class FleetConfig:
    """The engines of a run."""

    engine: EngineConfig
    # At the start.
    num_engines: int
    # What each engine reserves for itself; with seats, nothing.
    share: Share
    # The trainer's places, one for each engine that there may be. Empty: the fleet reserves places of its own.
    seats: tuple[Seat, ...] = ()
    # Where seeds come from.
    run_seed: int = 0
    # Restarts of engines over the fleet's life before it gives up.
    max_restarts: int = 3


class EnginePool:
    """Engines by number, from 0. Not for several threads at once."""

    def __init__(self, config: FleetConfig) -> None:
        """Reserves the places of the first engines. Raises UserError where the cluster has none."""
        self._config = config
        self._places: dict[int, PlacementGroup] = {}
        # Places that the cluster was asked for; it may have none yet.
        self._asked: dict[int, PlacementGroup] = {}
        self._handles: dict[int, Any] = {}
        if not config.seats:
            size = config.engine.tensor_parallel_size
            found = engine_group.reserve(config.num_engines, config.share, size)
            self._places = dict(enumerate(found))

    def has_room(self, first: int, end: int) -> bool:
        """Whether there are places for the engines `first` to `end` - 1. The cluster is asked for them, and no others,
        without a wait."""
        if self._config.seats:
            return True
        for number in [number for number in self._asked if not first <= number < end]:
            remove_placement_group(self._asked.pop(number))
        for number in range(first, end):
            if number not in self._asked:
                self._asked[number] = engine_group.ask_for_place(self._config.share)
        return all(place.wait(_LOOK_S) for place in self._asked.values())

    def take(self) -> None:
        """The places that `has_room` found are for engines now."""
        self._places |= self._asked
        self._asked = {}

    def start(self, number: int, config: EngineConfig) -> Any:
        """The actor of an engine, in its place; its predecessor is ended."""
        if number in self._handles:
            ray.kill(self._handles[number])
        place = self._config.seats[number] if self._config.seats else (self._places[number], 0, self._config.share)
        self._handles[number] = engine_group.start(config, 0, place)
        return self._handles[number]

    def wait_until_ready(self, handles: list[Any]) -> None:
        """Raises EngineDiedError where one dies."""
        try:
            engine_group.get([handle.ready.remote() for handle in handles])
        except EngineDiedError as error:
            advice = "if memory is short, see the system log for the OOM killer, and lower rollout.gpu_memory_fraction"
            raise EngineDiedError(f"a rollout engine died while it started; {advice}") from error

    def end(self, number: int) -> None:
        """Ends an engine, and gives its place back."""
        if (handle := self._handles.pop(number, None)) is not None:
            ray.kill(handle)
        if (place := self._places.pop(number, None)) is not None:
            remove_placement_group(place)

    def close(self) -> None:
        """Ends all, at once."""
        self.take()
        for number in {*self._handles, *self._places}:
            self.end(number)
