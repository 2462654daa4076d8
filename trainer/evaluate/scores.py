"""A metric as numbers of examples: its estimate, its 95% interval, and whether one model is worse than another.

Shapes: N examples, R resamples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from finecut.proto.config import UserError

_RESAMPLES = 2000  # the ends of an interval then move by 1 to 2% of its width from seed to seed
_CHUNK = 2**22  # drawn numbers at a time
_Z = 1.959964  # of the normal distribution, 97.5%


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its 95% confidence interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Scores:
    """One metric of one task: a number for each example, and what an example weighs.

    The metric is their weighted mean, or its exponential.
    """

    task: str
    metric: str
    example_ids_N: tuple[str, ...]
    values_N: np.ndarray
    # None: examples weigh the same.
    weights_N: np.ndarray | None = None
    is_exponential: bool = False
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        assert len(self.example_ids_N) == len(self.values_N) > 0, (self.task, self.metric)
        if not np.isfinite(self.values_N).all():
            raise UserError(f"task {self.task!r}: {self.metric} of an example is not a finite number")

    @property
    def value(self) -> float:
        """The estimate."""
        return float(self._of(np.average(self.values_N, weights=self.weights_N)))

    def interval(self, seed: int) -> Interval:
        """Wilson's where every example is right or wrong, else the bootstrap's percentiles."""
        if self.weights_N is None and np.isin(self.values_N, (0, 1)).all() and not self.is_exponential:
            return wilson(int(self.values_N.sum()), len(self.values_N))
        means_R = self._of(resampled_means(_stack(self), seed)[:, 0])
        low, high = (float(np.percentile(means_R, percent)) for percent in (2.5, 97.5))
        return Interval(self.value, low, high)

    def is_worse_than(self, other: Scores, seed: int) -> bool:
        """Whether this model is worse, with 97.5% confidence: paired where both were asked the same examples."""
        if self.example_ids_N == other.example_ids_N:
            both_R2 = resampled_means(_stack(self, other), seed)
            ours_R, theirs_R = both_R2[:, 0], both_R2[:, 1]
        else:
            ours_R = resampled_means(_stack(self), seed)[:, 0]
            theirs_R = resampled_means(_stack(other), seed + 1)[:, 0]
        better_R = (ours_R - theirs_R) * (1 if self.higher_is_better else -1)
        return bool(np.percentile(better_R, 97.5) < 0)

    def _of(self, mean: Any) -> Any:
        """The metric of a mean, or of many."""
        return np.exp(mean) if self.is_exponential else mean


def wilson(num_right: int, count: int) -> Interval:
    """Of a share (Wilson, 1927); it stays within 0 and 1, and is no point where all or none are right."""
    share = num_right / count
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    # Rounding must not exclude what was seen.
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def resampled_means(columns: Sequence[tuple[np.ndarray, np.ndarray]], seed: int) -> np.ndarray:
    """[R, columns]: the weighted means of (values, weights) under the same resamples of the examples."""
    count = len(columns[0][0])
    generator = np.random.default_rng(seed)
    rounds = max(1, _CHUNK // count)
    means = []
    for start in range(0, _RESAMPLES, rounds):
        drawn_RN = generator.integers(count, size=(min(rounds, _RESAMPLES - start), count))
        means.append([(v * w)[drawn_RN].sum(1) / w[drawn_RN].sum(1) for v, w in columns])
    return np.concatenate(means, axis=1).T


def _stack(*scores: Scores) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(s.values_N, np.ones(len(s.values_N)) if s.weights_N is None else s.weights_N) for s in scores]
