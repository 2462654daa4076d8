"""Which engine gets the next request, and how much engines had to do."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

# An engine that knows a prompt is preferred while it has at most this much more to do than the idlest one, in prompts
# with their longest answers. A prompt's keys and values are cheaper than waiting for long answers to others.
_AFFINITY_SLACK = 4


@dataclasses.dataclass(frozen=True)
class Load:
    """What engines had to do for a while.

    Attributes:
      busy_s: Seconds in which an engine had a request, summed over engines.
      imbalance: Tokens given to the busiest engine over the mean of all; 1 is even, or nothing was given.
    """

    busy_s: float
    imbalance: float


class Balancer:
    """Spreads requests by the tokens that engines still have to do; answers to one prompt stay together if they can.

    Deterministic for a given order of calls. Not thread-safe.
    """

    def __init__(self, num_engines: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._home: dict[str, int] = {}
        # By engine; of those that leave, too.
        self._outstanding: dict[int, int] = {}
        self._busy_since: dict[int, float] = {}
        self._busy_s = 0.0
        # Tokens by engine that gets requests.
        self._taken: dict[int, int] = {}
        self.resize(num_engines)

    def take(self, prompt: str, num_tokens: int) -> int:
        """The engine for a request of at most `num_tokens`, prompt included. Give it back with `done`."""
        idlest = min(self._taken, key=self._outstanding.__getitem__)
        home = self._home.get(prompt, idlest)
        if home not in self._taken or self._is_behind(home, idlest, num_tokens):
            home = idlest
        self._home[prompt] = home
        if not self._outstanding[home]:
            self._busy_since[home] = self._clock()
        self._outstanding[home] += num_tokens
        self._taken[home] += num_tokens
        return home

    def done(self, engine: int, num_tokens: int) -> None:
        """The request is finished, or will be asked of another engine."""
        self._outstanding[engine] -= num_tokens
        assert self._outstanding[engine] >= 0
        if not self._outstanding[engine]:
            self._busy_s += self._clock() - self._busy_since.pop(engine)

    def forget(self, prompts: set[str]) -> None:
        """No more requests come for these prompts."""
        for prompt in prompts:
            self._home.pop(prompt, None)

    def resize(self, num_engines: int) -> None:
        """The first `num_engines` get requests from now on; what others have, they finish."""
        for engine in range(num_engines):
            self._outstanding.setdefault(engine, 0)
        self._taken = dict.fromkeys(range(num_engines), 0)

    def outstanding(self, engine: int) -> int:
        """Tokens that an engine still has to do."""
        return self._outstanding[engine]

    def load(self) -> Load:
        """Since the last call."""
        now, taken = self._clock(), list(self._taken.values())
        busy_s = self._busy_s + sum(now - since for since in self._busy_since.values())
        self._busy_s, self._busy_since = 0.0, dict.fromkeys(self._busy_since, now)
        self._taken = dict.fromkeys(self._taken, 0)
        return Load(busy_s, max(taken) * len(taken) / sum(taken) if sum(taken) else 1.0)

    def _is_behind(self, home: int, idlest: int, num_tokens: int) -> bool:
        return self._outstanding[home] - self._outstanding[idlest] > _AFFINITY_SLACK * num_tokens
