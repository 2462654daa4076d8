"""Mean and standard deviation of all values so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

_EPSILON = 1e-8


class RunningMoments:
    """Merged batch by batch (Chan et al., 1983), which keeps what a sum of squares would lose."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0  # of differences from the mean

    def update(self, values: Sequence[float]) -> None:
        """Takes values in; all are finite."""
        if not values:
            return
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        count, delta = self._count + len(values), mean - self._mean
        self._squares += squares + delta * delta * self._count * len(values) / count
        self._mean += delta * len(values) / count
        self._count = count

    def normalized(self, value: float) -> float:
        """In standard deviations from the mean; 0 where all values were equal."""
        deviation = math.sqrt(self._squares / max(1, self._count))
        return (value - self._mean) / deviation if deviation > _EPSILON * max(1.0, abs(self._mean)) else 0.0

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"count": self._count, "mean": self._mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from a checkpoint."""
        self._count, self._mean, self._squares = int(state["count"]), state["mean"], state["squares"]
