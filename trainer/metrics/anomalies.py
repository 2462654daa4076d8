"""Losses that stand out of those before them."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from finecut.dataprep.documents import show_example_id

FILE = "anomalies.jsonl"
_WINDOW = 64  # steps that a loss is compared with
_LEAST = 16  # of them before anything can stand out
# Losses of a run that has settled vary so little that rounding would be many deviations.
_LEAST_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class Spike:
    """A step's loss and what it stands out of."""

    step: int
    loss: float
    mean: float
    deviation: float

    def __str__(self) -> str:
        times = (self.loss - self.mean) / self.deviation if self.deviation else math.inf
        return (
            f"step {self.step}: loss {self.loss:.4f} is a spike, {times:.1f} standard deviations above the mean"
            f" {self.mean:.4f} of the steps before"
        )


class SpikeDetector:
    """Remembers the last losses; a spike is not remembered, so that the next one stands out, too."""

    def __init__(self, deviations: float) -> None:
        self._deviations = deviations
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
        return Spike(step, loss, mean, deviation)


def record(folder: Path, entry: Mapping[str, object], example_ids: Sequence[int]) -> str:
    """Appends what happened with the examples of its batch; returns the file, or why there is none."""
    path = folder / FILE
    line = json.dumps(dict(entry) | {"example_ids": [show_example_id(number) for number in example_ids]})
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        return f"nowhere: {path}: {error}"
    return str(path)
