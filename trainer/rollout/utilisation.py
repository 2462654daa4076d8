"""How much of the time engines have something to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Utilisation:
    """Counts requests of each engine as they begin and end; one thread does, any may ask."""

    def __init__(self, num_engines: int, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._lock = now, threading.Lock()
        self._requests = [0] * num_engines
        self._num_busy = 0
        self._busy_s = 0.0
        self._counted_at = self._since = now()

    def begins(self, engine: int) -> None:
        """A request was given to this engine."""
        with self._lock:
            self._count()
            self._requests[engine] += 1
            self._num_busy += self._requests[engine] == 1

    def ends(self, engine: int) -> None:
        """It was answered, or is asked elsewhere."""
        with self._lock:
            self._count()
            self._requests[engine] -= 1
            self._num_busy -= self._requests[engine] == 0

    def take(self) -> float:
        """The share of the time since the last call in which an engine had a request, from 0 to 1, mean of all."""
        with self._lock:
            self._count()
            wall_s, self._since = self._counted_at - self._since, self._counted_at
            busy_s, self._busy_s = self._busy_s, 0.0
        return busy_s / (wall_s * len(self._requests)) if wall_s > 0 else 0.0

    def _count(self) -> None:
        now = self._now()
        self._busy_s += self._num_busy * (now - self._counted_at)
        self._counted_at = now
