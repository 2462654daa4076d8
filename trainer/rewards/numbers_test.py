"""Numbers in text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.trainer.rewards.numbers import Number, last_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 42.", 42),
        ("first 1, then 2", 2),
        ("1,234,567.5 tons", 1234567.5),
        ("12,34", 34),  # no group of thousands: a list
        ("1,2345", 2345),
        ("-7", -7),
        ("= −7", -7),
        ("- 7", -7),
        ("10-3", 3),
        ("(2)-3", 3),
        ("x=-3", -3),
        ("+5", 5),
        ("$1,000", 1000),
        ("-$20", -20),
        ("6.02e23", 6.02e23),
        ("1E-6", 1e-6),
        (".5", 0.5),
        ("about 3/4", 0.75),
        ("1 1/2 cups", 1.5),
        ("-1/4", -0.25),
        (r"\boxed{\frac{3}{8}}", 0.375),
        (r"-\dfrac{1}{2}", -0.5),
        (r"\frac{-1}{2}", -0.5),
        ("on 3/4/2024", 2024),
        ("#### 18", 18),
        ("**18**", 18),
        ("x2", 2),
    ],
)
def test_the_last_number_of_a_text(text: str, value: float) -> None:
    assert last_number(text) == Number(pytest.approx(value))


@pytest.mark.parametrize("text", ["", "none at all", "3/0", "1e999", "-", "1/" + "9" * 5000 + "x"])
def test_texts_without_a_finite_number(text: str) -> None:
    found = last_number(text)
    assert found is None or abs(found.value) < 10


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("50%", "0.5", True),
        ("50%", "50", True),
        ("0.5", "50%", True),
        ("50%", "50 %", True),
        (r"50\%", "50%", True),
        ("50%", "0.5%", False),
        ("3/4", "0.75", True),
        ("0.333", "1/3", False),
        ("1000000", "1,000,000", True),
        ("0", "0.0", True),
        ("1e-9", "0", False),
        ("-3", "3", False),
    ],
)
def test_equal_numbers_may_be_written_in_several_ways(answer: str, reference: str, equal: bool) -> None:
    left, right = last_number(answer), last_number(reference)
    assert left is not None and right is not None
    assert left.equals(right, relative_tolerance=1e-6) is equal


@settings(deadline=None, derandomize=True)
@given(st.integers(-(10**12), 10**12))
def test_whole_numbers_are_read_with_and_without_separators(number: int) -> None:
    assert last_number(f"it is {number}") == last_number(f"it is {number:,}") == Number(number)


@settings(deadline=None, derandomize=True)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_python_writes_is_read_back(number: float) -> None:
    assert last_number(repr(number)) == Number(number)


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=200))
def test_no_text_breaks_it(text: str) -> None:
    last_number(text)
