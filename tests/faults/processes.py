"""Ranks that die or freeze."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from finecut.trainer.liveness import reports


def rank_process(folder: Path, rank: int) -> int:
    """Process id of a rank that reports to `folder`."""
    return reports.read(folder, rank + 1)[rank].process


def kill(process: int) -> None:
    """Ends a process as the kernel does when memory runs out."""
    os.kill(process, signal.SIGKILL)


@contextlib.contextmanager
def frozen(process: int) -> Iterator[None]:
    """Keeps a process from running while the context lasts."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = 120.0) -> None:
    """Returns once `condition` holds; raises TimeoutError after the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {deadline_s:g} s for {what}")
        time.sleep(0.02)
