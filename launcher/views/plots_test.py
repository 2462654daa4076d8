"""Plots: what is drawn lies inside, is exact at its ends, and never fails on odd numbers."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.launcher.views.history import Curve
from finecut.launcher.views.plots import BOTTOM, LEFT, MAX_LINES, MAX_POINTS, RIGHT, TOP, Plot, number, plot


def drawn(*values: float) -> Plot:
    found = plot("Loss", "nats", {"loss": Curve(list(range(1, len(values) + 1)), list(values))})
    assert found
    return found


def points(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]


def test_a_falling_curve_goes_from_the_upper_left_to_the_lower_right() -> None:
    (line,) = drawn(4, 3, 2, 1).lines
    places = points(line.points)
    assert places[0] == (LEFT, TOP) and places[-1] == (RIGHT, BOTTOM) and line.last == "1"


def test_ticks_are_round_and_enclose_the_values() -> None:
    ticks = [tick.text for tick in drawn(0.13, 0.92).y_ticks]
    assert ticks == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_many_points_become_a_mean_over_a_band_with_exact_ends() -> None:
    values = [math.sin(n / 50) + (10 if n == 5001 else 0) for n in range(10_000)]
    (line,) = drawn(*values).lines
    places, band = points(line.points), points(line.band)
    assert len(places) == MAX_POINTS and line.last == number(values[-1])
    assert min(y for _, y in band) < min(y for _, y in places), "a spike shows in the band"


def test_one_point_is_a_dot_and_none_is_no_plot() -> None:
    assert drawn(2.0).lines[0].single is not None
    assert plot("Loss", "", {"loss": Curve([1], [math.nan])}) is None
    assert plot("Loss", "", {}) is None


def test_lines_that_have_no_room_are_counted() -> None:
    found = plot("Many", "", {str(n): Curve([1, 2], [n, n]) for n in range(MAX_LINES + 3)})
    assert found and len(found.lines) == MAX_LINES and found.left_out == 3


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=30))
def test_any_numbers_are_drawn_inside(values: list[float]) -> None:
    found = plot("Any", "", {"any": Curve(list(range(len(values))), values)})
    for line in found.lines if found else ():
        for x, y in points(line.points):
            assert LEFT <= x <= RIGHT and TOP <= y <= BOTTOM


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (0.5, "0.5"), (0, "0"), (2.5e-5, "2.5e-05"), (math.nan, "nan")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
