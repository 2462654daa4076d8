"""An environment for tests of multi-turn rollouts, named by its import path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finecut.trainer.rollout.environment import Reply


class Insistent:
    """Asks `record["times"]` times for more (unset: twice), then is done."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._left = int(record.get("times", 2))
        self.heard: list[str] = []

    def reply(self, answer: str) -> Reply:
        """Keeps what it heard."""
        self.heard.append(answer)
        self._left -= 1
        return (
            Reply([{"role": "user", "content": f"Go on, {self._left} more."}]) if self._left >= 0 else Reply((), True)
        )


def failing(record: Mapping[str, Any]) -> Insistent:
    """An environment that cannot be made."""
    raise KeyError("no such field")
