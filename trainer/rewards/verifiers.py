"""Rewards that are worked out from the answer: 1 where its text is right, else 0; and less than 0 where it is long."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import regex

from finecut.proto.config import UserError
from finecut.trainer.rewards.answer import Answer, Unscored
from finecut.trainer.rewards.numbers import last_number

_SEARCH_TIMEOUT_S = 1.0  # an expression that backtracks without end must not hold up the run


class Verifier(Protocol):
    """Judges answers one by one."""

    def score(self, answers: Sequence[Answer]) -> list[float | Unscored]:
        """A number for each."""
        return [self.judge(answer) for answer in answers]

    def close(self) -> None:
        """Nothing runs."""
        return None

    def judge(self, answer: Answer) -> float | Unscored:
        """Judges one answer."""
        ...


@dataclasses.dataclass(frozen=True)
class ExactMatchVerifier(Verifier):
    """Compares texts."""

    normalize: bool

    def judge(self, answer: Answer) -> float | Unscored:
        if answer.reference is None:
            return _NO_REFERENCE
        return float(self._normal(answer.text) == self._normal(answer.reference))

    def _normal(self, text: str) -> str:
        return text.strip().casefold() if self.normalize else text


@dataclasses.dataclass(frozen=True)
class NumericVerifier(Verifier):
    """Compares the last numbers of two texts."""

    relative_tolerance: float

    def judge(self, answer: Answer) -> float | Unscored:
        if answer.reference is None:
            return _NO_REFERENCE
        expected, found = last_number(answer.reference), last_number(answer.text)
        if expected is None:
            return Unscored(f"its reference {answer.reference[:40]!r} has no number")
        return float(found is not None and found.equals(expected, self.relative_tolerance))


class RegularExpressionVerifier(Verifier):
    """Looks for a pattern."""

    def __init__(self, pattern: str) -> None:
        """Raises UserError where it is none."""
        try:
            self._pattern = regex.compile(pattern)
        except regex.error as error:
            raise UserError(f"rewards.regular_expression: {pattern!r} is no regular expression: {error}") from error

    def judge(self, answer: Answer) -> float | Unscored:
        try:
            return float(self._pattern.search(answer.text, timeout=_SEARCH_TIMEOUT_S) is not None)
        except TimeoutError:
            return Unscored(f"the search took more than {_SEARCH_TIMEOUT_S:g} s; simplify the expression")


@dataclasses.dataclass(frozen=True)
class OverlongPunishment(Verifier):
    """Equation 13 of DAPO (Yu et al., 2025), up to the longest answer that there can be."""

    max_tokens: int
    buffer_tokens: int

    def judge(self, answer: Answer) -> float | Unscored:
        over = len(answer.answer_ids) - (self.max_tokens - self.buffer_tokens)
        return -max(0, over) / self.buffer_tokens


_NO_REFERENCE = Unscored("its record has no reference; set prompt.reference_field of the data")
