"""What a reward sees, and what it gives back. A user's reward function takes an `Answer`; nothing heavy is imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of the policy to one prompt.

    Answer(record_id="maths/00c0ffee00c0ffee", prompt="What is 6 x 7?", text="It is 42.",
           record={"source": "maths", "reference": "42", "verifier": None}, prompt_ids=(1, 5), answer_ids=(9, 4))
    """

    record_id: str
    # The prompt as the policy read it, and the answer (with several turns: all that followed the prompt), as text
    # without special tokens.
    prompt: str
    text: str
    # What data preparation kept of the record: "source", "reference" and "verifier".
    record: Mapping[str, Any]
    # The tokens as they were read and sampled. A user's function does not get them.
    prompt_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()

    @property
    def reference(self) -> str | None:
        """The answer that verifiers compare with."""
        return self.record.get("reference")

    @property
    def verifier(self) -> str | None:
        """The name of the reward that judges this record; None: all of the recipe's."""
        return self.record.get("verifier")


@dataclasses.dataclass(frozen=True)
class Unscored:
    """Why an answer got no number from a reward."""

    reason: str


class RewardFunction(Protocol):
    """What Reward.python.path names: a function of the user's, or an object that can be called."""

    def __call__(self, answer: Answer) -> float:
        """The worth of an answer, a finite number. Runs in a process of its own; an exception makes it unscored."""


class Scorer(Protocol):
    """One source of reward."""

    def score(self, answers: Sequence[Answer]) -> list[float | Unscored]:
        """A finite number for each, or why there is none. Collective where a process group shares a reward model."""

    def close(self) -> None:
        """Ends what the scorer runs."""
