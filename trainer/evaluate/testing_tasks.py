"""Tasks as users write them, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from finecut.trainer.evaluate.answers import AskedModel


def answer_length(model: AskedModel, data: Path | None) -> Mapping[str, Sequence[float]]:
    """Characters of two answers."""
    return {"length": [float(len(answer)) for answer in model.answer(["Hello?", "Who are you?"], max_new_tokens=4)]}


def broken(model: AskedModel, data: Path | None) -> Mapping[str, Sequence[float]]:
    """Raises."""
    raise RuntimeError("no such file")


def not_numbers(model: AskedModel, data: Path | None) -> Mapping[str, float]:
    """A number where a list is expected."""
    return {"length": 3.0}
