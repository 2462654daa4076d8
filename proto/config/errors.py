"""What a user is told when an input is wrong."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class UserError(ValueError):
    """An input is wrong. The message is for the user: it names what, why and what to do, and needs no traceback."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a config.

    Attributes:
      path: Field path such as "stages[1].sft.training.max_steps"; empty for the file as a whole.
      message: Value, rule and fix, in a sentence.
      place: File and line, such as "job.textproto:12", where known.
    """

    path: str
    message: str
    place: str = ""

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}" if self.path else self.message
        return f"{text} ({self.place})" if self.place else text


class ConfigError(UserError):
    """A config with at least one problem; all that could be found are here."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        assert self.problems
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


def suggestion(word: str, known: Sequence[str]) -> str:
    """A hint at what was meant: the nearest known word, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"use one of: {', '.join(known)}" if known else "nothing can be set here"
