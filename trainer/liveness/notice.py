"""A notice asks a group to write a checkpoint and to stop: a file that all ranks see, or SIGTERM to any rank.

SIGTERM to the launcher, a draining Ray node, a cloud's spot notice or a larger group that is possible again lead to
`give`; ranks see it within half a second, agree after the step, save and raise Preempted.
"""

from __future__ import annotations

from pathlib import Path

from finecut.proto.run import files

EXIT_PREEMPTED = 75
"""Exit code of a process that stopped on notice, with a checkpoint (sysexits.h: EX_TEMPFAIL, try again later)."""


class Preempted(BaseException):
    """The stage stopped on notice; its checkpoint is written, and started again it goes on from there.

    A BaseException: it is no failure, and no `except Exception` may take it for one.
    """

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(step, reason)
        self.step = step
        self.reason = reason

    def __str__(self) -> str:
        return f"stopped on notice ({self.reason}) after step {self.step}, whose checkpoint is written"


def give(folder: Path, reason: str) -> None:
    """Asks the ranks that report to `folder` to stop."""
    files.write_atomically(folder / "notice", reason)


def read(folder: Path) -> str | None:
    """Why the ranks were asked to stop; None: they were not."""
    try:
        return (folder / "notice").read_text(encoding="utf-8")
    except OSError:
        return None
