"""Losses, and gradient norms, that stand out of those before them."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

FILE = "anomalies.jsonl"
_WINDOW = 64  # steps that a loss is compared with
_LEAST = 16  # of them before anything can stand out
# Losses of a run that has settled vary so little that rounding would be many deviations.
_LEAST_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class Spike:
    """A step's loss, or gradient norm, and what it stands out of."""

    step: int
    value: float
    mean: float
    deviation: float
    what: str = "loss"

    def __str__(self) -> str:
        times = (self.value - self.mean) / self.deviation if self.deviation else math.inf
        return (
            f"step {self.step}: {self.what} {self.value:.4f} is a spike, {times:.1f} standard deviations above the mean"
            f" {self.mean:.4f} of the steps before"
        )


class SpikeDetector:
    """Remembers the last losses; a spike is not remembered, so that the next one stands out, too."""

    def __init__(self, deviations: float, what: str = "loss") -> None:
        self._deviations, self._what = deviations, what
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    def add(self, step: int, loss: float) -> Spike | None:
        """Takes the loss of one step. None: it is an ordinary one, or it is too early to tell."""
        if len(self._losses) < _LEAST:
            self._losses.append(loss)
            return None
        mean, deviation = statistics.fmean(self._losses), statistics.pstdev(self._losses)
        if math.isfinite(loss) and loss - mean <= max(self._deviations * deviation, _LEAST_SHARE * abs(mean)):
            self._losses.append(loss)
            return None
        return Spike(step, loss, mean, deviation, self._what)


def record(folder: Path, entry: Mapping[str, object], examples: Sequence[str]) -> str:
    """Appends what happened with the ids of its batch's examples; returns the file, or why there is none."""
    path = folder / FILE
    line = json.dumps(dict(entry) | {"example_ids": list(examples)})
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        return f"nowhere: {path}: {error}"
    return str(path)
