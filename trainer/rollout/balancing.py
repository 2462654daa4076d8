"""Which engine gets the next request."""

from __future__ import annotations

from finecut.trainer.rollout.utilisation import Utilisation

# An engine that knows a prompt is preferred while it has at most this much more to do than the idlest one, in prompts
# with their longest answers. A prompt's keys and values are cheaper than waiting for long answers to others.
_AFFINITY_SLACK = 4


class Balancer:
    """Spreads requests by the tokens that engines still have to do; answers to one prompt stay together if they can.

    Deterministic for a given order of calls. Not thread-safe.
    """

    def __init__(self, num_engines: int) -> None:
        self._outstanding = [0] * num_engines
        self._home: dict[str, int] = {}
        self.utilisation = Utilisation(num_engines)

    def take(self, prompt: str, num_tokens: int) -> int:
        """The engine for a request of at most `num_tokens`, prompt included. Give it back with `done`."""
        idlest = min(range(len(self._outstanding)), key=self._outstanding.__getitem__)
        home = self._home.get(prompt, idlest)
        if self._outstanding[home] - self._outstanding[idlest] > _AFFINITY_SLACK * num_tokens:
            home = idlest
        self._home[prompt] = home
        self._outstanding[home] += num_tokens
        self.utilisation.begins(home)
        return home

    def done(self, engine: int, num_tokens: int) -> None:
        """The request is finished, or will be asked of another engine."""
        self._outstanding[engine] -= num_tokens
        self.utilisation.ends(engine)
        assert self._outstanding[engine] >= 0

    def forget(self, prompts: set[str]) -> None:
        """No more requests come for these prompts."""
        for prompt in prompts:
            self._home.pop(prompt, None)
