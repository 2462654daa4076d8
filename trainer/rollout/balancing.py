"""Which engine gets the next request."""

from __future__ import annotations

# An engine that knows a prompt is preferred while it has at most this much more to do than the idlest one, in prompts
# with their longest answers. A prompt's keys and values are cheaper than waiting for long answers to others.
_AFFINITY_SLACK = 4


class Balancer:
    """Spreads requests by the tokens that engines still have to do; answers to one prompt stay together if they can.

    Deterministic for a given order of calls. Not thread-safe.
    """

    def __init__(self, num_engines: int) -> None:
        self._outstanding = dict.fromkeys(range(num_engines), 0)
        self._home: dict[str, int] = {}
        self._taken = dict.fromkeys(range(num_engines), 0)

    def take(self, prompt: str, num_tokens: int) -> int:
        """The engine for a request of at most `num_tokens`, prompt included. Give it back with `done`."""
        idlest = min(self._taken, key=self._outstanding.__getitem__)
        home = self._home.get(prompt, idlest)
        if home not in self._taken or self._is_behind(home, idlest, num_tokens):
            home = idlest
        self._home[prompt] = home
        self._outstanding[home] += num_tokens
        self._taken[home] += num_tokens
        return home

    def done(self, engine: int, num_tokens: int) -> None:
        """The request is finished, or will be asked of another engine."""
        self._outstanding[engine] -= num_tokens
        assert self._outstanding[engine] >= 0

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

    def imbalance(self) -> float:
        """Tokens given to the busiest engine over the mean of all, since the last call; 1 is even, or nothing."""
        taken = list(self._taken.values())
        self._taken = dict.fromkeys(self._taken, 0)
        return max(taken) * len(taken) / sum(taken) if sum(taken) else 1.0

    def _is_behind(self, home: int, idlest: int, num_tokens: int) -> bool:
        return self._outstanding[home] - self._outstanding[idlest] > _AFFINITY_SLACK * num_tokens
