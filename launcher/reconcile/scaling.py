"""How many nodes a group is to have, from what its nodes do. Pure: it is told everything, and nothing happens here.

work found no room          -> more nodes, at once, up to the most
a node did nothing for long -> that node goes, down to the fewest; to none when no coming stage needs the group
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Bounds:
    """Fewest and most nodes while the group is needed; equal: it does not scale."""

    fewest: int
    most: int


@dataclass(frozen=True)
class Use:
    """What a look at a group found.

    Attributes:
      busy: Nodes that are at work.
      idle: Nodes that are there and do nothing, by instance.
      waiting: Nodes' worth of work that found no room.
      is_needed: Whether a coming stage, or one at work, needs the group.
    """

    busy: int
    idle: frozenset[str]
    waiting: int
    is_needed: bool


@dataclass(frozen=True)
class Target:
    """`count` nodes are meant; `spare` are those that go."""

    count: int
    spare: tuple[str, ...] = ()


@dataclass
class Scaler:
    """One group's. `count`: nodes that are meant now."""

    bounds: Bounds
    count: int
    idle_s: float
    _idle_since: dict[str, float] = field(default_factory=dict)

    def after_look(self, use: Use, now: float) -> Target:
        """Takes a look at the group, at `now` seconds of any steady clock; the next count."""
        self._idle_since = {name: self._idle_since.get(name, now) for name in use.idle}
        members = use.busy + len(use.idle)
        if use.is_needed and use.waiting:  # nodes that boot are in `count`, and are not asked for twice
            self.count = max(self.count, min(self.bounds.most, members + use.waiting))
            return Target(self.count)
        fewest = self.bounds.fewest if use.is_needed else 0
        long_idle = sorted(name for name, since in self._idle_since.items() if now - since >= self.idle_s)
        spare = tuple(long_idle[: max(0, self.count - fewest)])
        self.count -= len(spare)
        return Target(self.count, spare)

    def kept(self, instance: str) -> None:
        """A node that was to go is at work after all."""
        self.count += 1
        self._idle_since.pop(instance, None)
