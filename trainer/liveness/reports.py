"""What each rank says of itself, in one small file a rank: "ranks/rank-3.json".

A report holds counters, no times: whoever watches measures with a clock of its own, so that clocks that jump or differ
between hosts cannot make a rank look dead or alive.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

_BYTES = 2048  # a report is one write of this size, so that a reader never sees half of one


@dataclasses.dataclass(frozen=True)
class Report:
    """Where a rank is.

    Attributes:
      moves: Counts each step and phase that begins. Stands still where the rank does.
      beats: Counts the reporting thread's rounds. Stands still where the whole process does.
      collective: The collective that it has waited in for a while, such as "all_reduce"; empty: none, or not known.
      place: Where its own code stands, such as "trainer/data/prefetch.py:57 in take"; empty while it goes forward.
      failure: Why it ended, where it failed.
    """

    rank: int
    process: int
    host: str
    step: int = 0
    phase: str = "start"
    moves: int = 0
    beats: int = 0
    collective: str = ""
    place: str = ""
    failure: str = ""


def path_of(folder: Path, rank: int) -> Path:
    """The report of a rank."""
    return folder / f"rank-{rank}.json"


def stacks_of(folder: Path, rank: int) -> Path:
    """Where a rank that stands still writes the stacks of its threads."""
    return folder / f"rank-{rank}.stacks.txt"


def write(folder: Path, report: Report) -> None:
    """Replaces the rank's report."""
    shortened = dataclasses.replace(report, failure=report.failure[:500], place=report.place[:200])
    text = json.dumps(dataclasses.asdict(shortened)).ljust(_BYTES - 1) + "\n"
    descriptor = os.open(path_of(folder, report.rank), os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, text.encode(), 0)
    finally:
        os.close(descriptor)


def read(folder: Path, num_ranks: int) -> dict[int, Report]:
    """The reports that are there, by rank."""
    found = {}
    for rank in range(num_ranks):
        try:
            found[rank] = Report(**json.loads(path_of(folder, rank).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue  # not started yet, or caught while it was being written
    return found


def clear(folder: Path) -> None:
    """Forgets the reports and notices of an earlier try."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
