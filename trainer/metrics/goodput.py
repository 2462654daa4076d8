"""Goodput: the share of wall time, over all restarts, in steps whose results were kept.

    goodput.json  {"started_at": seconds since 1970, "steps": [[step, useful seconds up to it], ...]}

Written with each checkpoint: steps after it that a crash undoes count as lost, as does the time until the next start.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

FILE = "goodput.json"
_KEPT = 1_000  # checkpoints; older ones are not resumed from


class Goodput:
    """Counts on rank 0; the file is written by nobody else."""

    def __init__(self, folder: Path, resumed_step: int, now: Callable[[], float] = time.time) -> None:
        self._path = folder / FILE
        self._now = now
        self._started_at, self._steps = now(), [(0, 0.0)]
        if resumed_step:
            self._take_over(resumed_step)
        self._useful_s = self._steps[-1][1]

    def _take_over(self, resumed_step: int) -> None:
        """What an earlier try wrote up to the checkpoint; a file that is damaged or gone begins anew."""
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            started_at = float(stored["started_at"])
            steps = [(int(step), float(seconds)) for step, seconds in stored["steps"] if step <= resumed_step]
        except (OSError, ValueError, KeyError, TypeError):
            return
        # A clock that was set back since then would make more than all of the time useful.
        if steps and started_at <= self._now():
            self._started_at, self._steps = started_at, steps

    def add(self, seconds: float) -> None:
        """A training step was done."""
        self._useful_s += seconds

    def saved(self, step: int) -> None:
        """A checkpoint keeps what was done so far."""
        self._steps = [*self._steps, (step, self._useful_s)][-_KEPT:]
        text = json.dumps({"started_at": self._started_at, "steps": self._steps})
        partial = self._path.with_suffix(".partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            partial.replace(self._path)
        except OSError:
            return  # a full disk: the recorder says so

    def share(self) -> float:
        """From 0 to 1."""
        wall_s = self._now() - self._started_at
        return min(1.0, self._useful_s / wall_s) if wall_s > 0 else 0.0
