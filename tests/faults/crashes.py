"""Ends a process at a chosen write, as a kill would: a crash point lies before each call that makes data durable or
changes a name, so what one call did and the next one did not is seen at every place.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

EXIT_CRASHED = 137  # what a shell says of SIGKILL
_CALLS = ("fsync", "replace", "unlink")


def install(at: int) -> None:
    """Makes this process end at its `at`-th crash point from now on (from 1). It must not write anything else."""
    points = 0

    def crash_here() -> None:
        nonlocal points
        points += 1
        if points == at:
            os._exit(EXIT_CRASHED)

    def with_crash_points(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            crash_here()
            return call(*args, **kwargs)

        return wrapped

    for name in _CALLS:
        setattr(os, name, with_crash_points(getattr(os, name)))


def crashes_at(at: int, work: Callable[..., None], *arguments: Any) -> bool:
    """Runs `work` in a child that ends at its `at`-th crash point; whether it got so far.

    The child is forked, so `work` needs no import; it must not use threads or groups of this process. Raises
    AssertionError where it fails in another way.
    """

    def run() -> None:
        install(at)
        work(*arguments)
        os._exit(0)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(120)
    assert child.exitcode in (0, EXIT_CRASHED), f"the child ended with {child.exitcode}"
    return child.exitcode == EXIT_CRASHED
