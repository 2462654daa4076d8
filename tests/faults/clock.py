"""A wall clock that jumps, as after a suspension or a correction. Monotonic time goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def jumped(seconds: float) -> Iterator[None]:
    """Moves this process's wall clock by so much, forwards or backwards."""
    now, now_ns = time.time, time.time_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + seconds)
        patch.setattr(time, "time_ns", lambda: now_ns() + int(seconds * 1e9))
        yield
