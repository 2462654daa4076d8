"""Line plots as plain geometry, for templates to draw as SVG: equal input gives equal drawings."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finecut.launcher.views.history import Curve

# Of one drawing, in SVG's units; the plot's own area lies within.
WIDTH, HEIGHT = 360.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 350.0, 12.0, 150.0
# More points than the plot has room for are drawn as their mean, over a band from least to largest.
MAX_POINTS = 240
MAX_LINES = 6


@dataclass(frozen=True)
class Line:
    """One curve: its mean as a polyline's points, and the band behind it (empty where no points were joined)."""

    label: str
    points: str
    band: str
    last: str
    single: tuple[float, float] | None  # a curve of one point is a dot


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Plot:
    """A drawing. `left_out` counts the curves for which there was no room."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left_out: int = 0


def plot(title: str, unit: str, curves: Mapping[str, Curve]) -> Plot | None:
    """Draws curves over one another; None where no value can be drawn."""
    found = {label: list(curve.finite()) for label, curve in curves.items()}
    found = {label: points for label, points in found.items() if points}
    if not found:
        return None
    shown = dict(list(found.items())[:MAX_LINES])
    steps = [step for points in shown.values() for step, _ in points]
    values = [value for points in shown.values() for _, value in points]
    x = _Scale(min(steps), max(steps), LEFT, RIGHT)
    ticks = _nice(min(values), max(values))
    y = _Scale(min(ticks[0], min(values)), max(ticks[-1], max(values)), BOTTOM, TOP)
    middle = (min(steps) + max(steps)) // 2
    return Plot(
        title=title,
        unit=unit,
        lines=tuple(_line(label, points, x, y) for label, points in shown.items()),
        x_ticks=tuple(Tick(x(step), f"{step:,}") for step in sorted({min(steps), middle, max(steps)})),
        y_ticks=tuple(Tick(y(value), number(value)) for value in ticks),
        left_out=len(found) - len(shown),
    )


def number(value: float) -> str:
    """A value as people read it: "1,234", "0.0123", "2.5e-05"."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 0.001 or value == 0:
        return f"{value:.4g}"
    return f"{value:.2g}"


@dataclass(frozen=True)
class _Scale:
    """A straight map from values to places; a range of one value maps to the middle."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 2)


def _line(label: str, points: Sequence[tuple[int, float]], x: _Scale, y: _Scale) -> Line:
    buckets = _buckets(points)
    means = [(sum(s for s, _ in each) / len(each), math.fsum(v for _, v in each) / len(each)) for each in buckets]
    # The ends are exact: they are what is read off.
    means[0], means[-1] = points[0], points[-1]
    band = ""
    if len(buckets) < len(points):
        low = [(x(s), y(min(v for _, v in each))) for (s, _), each in zip(means, buckets, strict=True)]
        high = [(x(s), y(max(v for _, v in each))) for (s, _), each in zip(means, buckets, strict=True)]
        band = _text([*high, *reversed(low)])
    places = [(x(step), y(value)) for step, value in means]
    single = places[0] if len(points) == 1 else None
    return Line(label, "" if single else _text(places), band, number(points[-1][1]), single)


def _buckets(points: Sequence[tuple[int, float]]) -> list[Sequence[tuple[int, float]]]:
    if len(points) <= MAX_POINTS:
        return [[point] for point in points]
    edges = [round(n * len(points) / MAX_POINTS) for n in range(MAX_POINTS + 1)]
    return [points[start:end] for start, end in itertools.pairwise(edges)]


def _text(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def _nice(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from just below `low` to just above `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    if rough <= 0 or not math.isfinite(rough):  # a range that floats cannot cut, or that overflows
        return [low, high]
    magnitude = 10.0 ** math.floor(math.log10(rough))
    if magnitude == 0:
        return [low, high]
    size = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.floor(low / size), math.ceil(high / size)
    return [n * size for n in range(first, last + 1)] if last - first <= 2 * count + 2 else [low, high]
