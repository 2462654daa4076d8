"""Keeps recording cheap where steps are short: a share of the time, with a store for the start of a run.

What costs more than has been saved up puts off what comes next, until a share of the steps' time has paid for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_SHARE = 0.005  # records and details have a budget each: a hundredth together


class Budget:
    """Counts in seconds, on one rank, which tells the others."""

    def __init__(self, saved_s: float, now: Callable[[], float] = time.monotonic) -> None:
        """`saved_s`: what a run may spend at once, so that short runs are recorded whole."""
        self._most = self._saved = saved_s
        self._now = now
        self._counted_at = now()

    def spend(self, seconds: float) -> None:
        """Something was recorded."""
        now = self._now()
        self._saved = min(self._most, self._saved + _SHARE * (now - self._counted_at)) - seconds
        self._counted_at = now

    def steps_to_wait(self, step_seconds: float) -> int:
        """How many steps of so long from here the next record is: 1 for the next one."""
        if self._saved >= 0:
            return 1
        return 1 + math.ceil(-self._saved / (_SHARE * max(step_seconds, 1e-6)))
