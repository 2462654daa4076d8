"""Finds numbers in text as people and models write them."""

from __future__ import annotations

import dataclasses
import math
import re

# A minus is a sign where no number, letter or bracket stands before it: "10-3" holds 10 and 3.
_SIGN = r"(?P<sign>(?<![\w)\]}])[-−+]\s?)?"
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(
    _SIGN
    + r"[$€£]?"
    + r"(?:\\[dt]?frac\{\s*(?P<above>[-−]?\d+)\s*\}\{\s*(?P<below>\d+)\s*\}"
    + r"|(?:(?P<whole>\d+)\s+)?(?P<numerator>\d+)\s*/\s*(?P<denominator>\d+)(?![\d.,]*\d)"
    + rf"|(?P<plain>{_PLAIN}))"
    + r"(?P<percent>\s?\\?%)?"
)


@dataclasses.dataclass(frozen=True)
class Number:
    """A number as it is written; of a percentage `value` is the number before the sign."""

    value: float
    is_percentage: bool = False

    def equals(self, other: Number, relative_tolerance: float) -> bool:
        """Whether it is the reference `other`, within a part of that.

        50% equals 50 and 0.5, as texts differ in what they mean; beside another percentage it equals 50% alone.
        """
        own = [self.value]
        references = [other.value]
        if self.is_percentage and not other.is_percentage:
            own.append(self.value / 100)
        if other.is_percentage and not self.is_percentage:
            references.append(other.value / 100)
        return any(abs(a - b) <= relative_tolerance * abs(b) for a in own for b in references)


def last_number(text: str) -> Number | None:
    """The last number of a text, or None where there is none that is finite.

    Knows thousands separators (commas), decimals, exponents, fractions ("3/4", "1 1/2", LaTeX's), percentages, signs
    and signs of currency. A decimal comma is not told from a list: "1,5" ends with 5.
    """
    found = None
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is not None and math.isfinite(value):
            found = Number(-value if (match["sign"] or "").strip() in ("-", "−") else value, bool(match["percent"]))
    return found


def _value(match: re.Match[str]) -> float | None:
    if match["plain"]:
        return float(match["plain"].replace(",", ""))
    above = (match["above"] or match["numerator"]).replace("−", "-")
    below = float(match["below"] or match["denominator"])
    return float(match["whole"] or 0) + float(above) / below if below else None
