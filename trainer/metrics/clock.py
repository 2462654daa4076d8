"""A time of day that jumps: seen by the clock that only ever runs on."""

from __future__ import annotations

import time
from collections.abc import Callable

# Slewing by NTP is under 0.05%; a step of the clock, or a host that was suspended, is more.
_JUMP_S = 5.0


class Clock:
    """Compares both clocks from when it is made. Says of a jump once."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()
        self._has_told = False

    def jump(self) -> float:
        """Seconds by which the time of day has jumped, the first time that this is seen; else 0."""
        offset = self._wall() - self._steady()
        jump, self._offset = offset - self._offset, offset
        if self._has_told or abs(jump) < _JUMP_S:
            return 0.0
        self._has_told = True
        return jump
