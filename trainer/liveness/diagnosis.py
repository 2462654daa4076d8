"""Finds out from the ranks' reports that a group stands still, and which rank is to blame."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from finecut.trainer.liveness import reports
from finecut.trainer.liveness.reports import Report

# Processes that start import, meet and load a model, which is no step and no measure for one.
_START_S = 900.0
# Rounds of the reporting thread take half a second. A process that makes none for this long does not run: it is
# stopped, or code that never lets go of the interpreter keeps the thread from running.
_FROZEN_S = 10.0
# Letters of /proc/PID/stat (proc(5)) that tell why a process does not run.
_PROCESS_STATES = {"T": "stopped (SIGSTOP)", "t": "stopped by a debugger", "D": "waiting for a device", "Z": "dead"}


class Observer:
    """Watches the reports of a group. `check` is called every second or so."""

    def __init__(
        self, folder: Path, num_ranks: int, hang_timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._num_ranks = num_ranks
        self._hang_timeout_s = hang_timeout_s
        self._clock = clock
        self._moved_at = clock()
        self._last_moves: dict[int, int] = {}
        self._beats: dict[int, tuple[int, float]] = {}  # by rank: the count and when it changed
        self.reports: dict[int, Report] = {}

    def check(self) -> str | None:
        """None while some rank goes forward, or has done so within the timeout; else which rank hangs, in words."""
        now = self._clock()
        self.reports |= reports.read(self._folder, self._num_ranks)
        moves = {rank: report.moves for rank, report in self.reports.items()}
        if moves != self._last_moves:
            self._last_moves, self._moved_at = moves, now
        for rank, report in self.reports.items():
            if self._beats.get(rank, (-1, 0.0))[0] != report.beats:
                self._beats[rank] = (report.beats, now)
        have_started = len(moves) == self._num_ranks and all(moves.values())
        timeout_s = self._hang_timeout_s if have_started else max(self._hang_timeout_s, _START_S)
        if now - self._moved_at < timeout_s:
            return None
        frozen_s = min(_FROZEN_S, self._hang_timeout_s / 2)
        frozen = {rank for rank, (_, at) in self._beats.items() if now - at > frozen_s}
        missing = [rank for rank in range(self._num_ranks) if rank not in self.reports]
        return f"no rank went forward for {timeout_s:g} s: {blame(self.reports, frozen, missing)}"

    def failure(self) -> str | None:
        """Why a rank ended, where one has failed."""
        return next((f"rank {rank}: {report.failure}" for rank, report in self.reports.items() if report.failure), None)

    def dump_stacks_of_frozen(self) -> None:
        """Asks for the stacks of processes on this host that cannot write theirs by themselves."""
        for report in self.reports.values():
            if is_here(report) and not reports.stacks_of(self._folder, report.rank).exists():
                os.kill(report.process, signal.SIGUSR1)


def blame(found: dict[int, Report], frozen: set[int], missing: Sequence[int] = ()) -> str:
    """Which ranks hold the others up, in words. `frozen` ranks do not run; `missing` ones never reported."""
    if missing:
        return f"{_ranks(missing)} did not start"
    if frozen:
        where = found[min(frozen)]
        state = process_state(where)
        how = f"its process is {state}" if state else "its process does not run"
        froze = f"{_ranks(sorted(frozen))} froze in step {where.step}, phase {where.phase}: {how}"
        return f"{froze}; {_waiting(found, frozen)}"
    outside = {rank for rank, report in found.items() if not report.collective}
    if outside and len(outside) < len(found):
        where = found[min(outside)]
        place = f" at {where.place}" if where.place else ""
        return (
            f"{_ranks(sorted(outside))} stands in step {where.step}, phase {where.phase}{place};"
            f" {_waiting(found, outside)}"
        )
    behind = _odd_ones(found)
    if behind:
        where = found[min(behind)]
        return (
            f"{_ranks(sorted(behind))} waits in {where.collective or where.place} in step {where.step}, phase"
            f" {where.phase}; {_waiting(found, behind)}"
        )
    where = next(iter(found.values()))
    what = f"in the collective {where.collective}" if where.collective else f"at {where.place or 'an unknown place'}"
    return f"all ranks stand {what} in step {where.step}, phase {where.phase}; the network between them may be gone"


def _odd_ones(found: dict[int, Report]) -> set[int]:
    """Ranks that are behind in the work; else those in another place than most."""
    order = {rank: (report.step, report.moves) for rank, report in found.items()}
    if len(set(order.values())) > 1:
        return {rank for rank, position in order.items() if position == min(order.values())}
    places = Counter(report.collective for report in found.values())
    if len(places) == 1:
        return set()
    (most, _), *_ = places.most_common()
    return {rank for rank, report in found.items() if report.collective != most}


def _waiting(found: dict[int, Report], blamed: set[int]) -> str:
    others = {rank: report for rank, report in found.items() if rank not in blamed}
    collectives = Counter(report.collective for report in others.values() if report.collective)
    if not collectives:
        return "no other rank waits in a collective"
    name, _ = collectives.most_common()[0]
    waiting = sorted(rank for rank, report in others.items() if report.collective == name)
    step = others[waiting[0]].step
    return f"{_ranks(waiting)} {'wait' if len(waiting) > 1 else 'waits'} for it in the collective {name} of step {step}"


def _ranks(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    shown = ", ".join(str(number) for number in numbers[:8])
    return f"ranks {shown}{', ...' if len(numbers) > 8 else ''}"


def is_here(report: Report) -> bool:
    """Whether a rank's process runs on this host."""
    if report.host != socket.gethostname():
        return False
    try:
        os.kill(report.process, 0)
    except OSError:
        return False
    return True


def process_state(report: Report) -> str:
    """What the kernel says of a process that does not run, such as "stopped"; empty: nothing telling."""
    if not is_here(report):
        return ""
    try:
        letter = Path(f"/proc/{report.process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
    return _PROCESS_STATES.get(letter, "")
