"""Ranks that die."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from finecut.trainer.liveness import reports


def rank_process(folder: Path, rank: int) -> int | None:
    """Process id of a rank of a Ray group that reports to `folder`; None where it is not at work."""
    report = reports.read(folder, rank + 1).get(rank)
    if report is None:
        return None
    try:
        # Ray's title of the actor: a report outlives its process, whose id may be another's by now.
        is_rank = Path(f"/proc/{report.process}/cmdline").read_bytes().startswith(b"ray::_Rank")
    except OSError:
        return None
    return report.process if is_rank else None


def kill(process: int) -> None:
    """Ends a process as the kernel does when memory runs out."""
    os.kill(process, signal.SIGKILL)
