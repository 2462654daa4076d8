"""An environment of a rollout with several turns: the policy guesses a number, and hears whether it was too high."""

import re
from collections.abc import Mapping
from typing import Any

from finecut.trainer.rollout.environment import Reply


class Guessing:
    """One conversation. The record's reference is the number."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._number = int(record["reference"])

    def reply(self, answer: str) -> Reply:
        """What the policy hears of its last guess; nothing once it was right."""
        guesses = re.findall(r"-?\d+", answer)
        if not guesses:
            return _say("Say a number.")
        guess = int(guesses[-1])
        if guess == self._number:
            return Reply(is_done=True)
        return _say("Too high." if guess > self._number else "Too low.")


def _say(text: str) -> Reply:
    return Reply([{"role": "user", "content": text}])
