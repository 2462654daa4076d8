"""One rank's side: it reports where it is, dumps its stacks when it stands still, and notices when it is to stop.

recipe's thread    at(step, phase) ...... at(step, phase) ...... should_stop(devices)
reporting thread   every half second: report, look for a notice; standing still too long: stacks
                   without a driver: also watches the other ranks, and ends this process when they are gone
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from finecut.trainer.liveness import notice, reports, stacks
from finecut.trainer.liveness.diagnosis import Observer
from finecut.trainer.liveness.reports import Report

T = TypeVar("T")

_ROUND_S = 0.5
# Until then a rank that does not move is not worth a look at its stack.
_STILL_S = 2.0
# The others may find out too, or end by themselves with more to say; only then do their connections close.
_GRACE_S = 5.0
DRIVEN = "FINECUT_DRIVEN"
"""Set in the environment of ranks that a driver watches."""


class Group(Protocol):
    """What agreeing takes."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def barrier(self) -> None:
        """Waits for all ranks."""

    def max(self, value: float) -> float:
        """Largest value over all ranks. Collective."""


class Liveness:
    """Reports for one rank; `watching` makes it."""

    def __init__(self, folder: Path, rank: int, num_ranks: int, hang_timeout_s: float) -> None:
        self._folder = folder
        self._hang_timeout_s = hang_timeout_s
        self._thread_id = threading.get_ident()
        self._report = Report(rank, os.getpid(), socket.gethostname())
        self._moved_at = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._notice: str | None = None
        self._observer: Observer | None = None
        if DRIVEN not in os.environ and num_ranks > 1:
            self._observer = Observer(folder, num_ranks, hang_timeout_s)
        self._stacks = reports.stacks_of(folder, rank).open("w")
        # The kernel's signal reaches a process whose interpreter is busy, too.
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)
        reports.write(folder, self._report)
        self._thread = threading.Thread(target=self._run, name="liveness", daemon=True)
        self._thread.start()

    def at(self, step: int, phase: str) -> None:
        """This rank begins a phase of a step, such as "train"; it goes forward."""
        with self._lock:
            self._moved_at = time.monotonic()
            moves = self._report.moves + 1
            self._report = dataclasses.replace(self._report, step=step, phase=phase, moves=moves)

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; each one that is taken counts as going forward."""
        for item in items:
            self.at(self._report.step, self._report.phase)
            yield item

    def stop(self, reason: str) -> None:
        """Asks the group to stop after this step. May be called from a signal handler."""
        self._notice = self._notice or reason

    def should_stop(self, group: Group) -> str | None:
        """Why the group stops now; None: it goes on. Collective, the same on every rank."""
        if not group.max(float(self._notice is not None)):
            return None
        return self._notice or notice.read(self._folder) or "another rank was told to stop"

    def failed(self, failure: str) -> None:
        """Tells the other ranks that this one ends."""
        with self._lock:
            self._report = dataclasses.replace(self._report, failure=failure)
            reports.write(self._folder, self._report)

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join(_GRACE_S)
        faulthandler.unregister(signal.SIGUSR1)
        self._stacks.close()

    def _run(self) -> None:
        dumped = False
        while not self._ended.wait(_ROUND_S):
            try:
                still_s = time.monotonic() - self._moved_at
                self._write_report(still_s)
                self._notice = self._notice or notice.read(self._folder)
                if still_s > self._hang_timeout_s and not dumped:
                    dumped = True
                    faulthandler.dump_traceback(self._stacks, all_threads=True)
                if self._observer:
                    self._watch_others(self._observer)
            except OSError:
                continue  # the run's storage fails for a moment; the watcher will see that no report comes

    def _write_report(self, still_s: float) -> None:
        collective = stacks.collective_of(self._thread_id) if still_s > _STILL_S else ""
        place = stacks.place_of(self._thread_id) if still_s > _STILL_S else ""
        with self._lock:
            beats = self._report.beats + 1
            self._report = dataclasses.replace(self._report, beats=beats, collective=collective, place=place)
            reports.write(self._folder, self._report)

    def _watch_others(self, observer: Observer) -> None:
        """Without a driver: ends this process where the group cannot go on. What started the ranks starts them anew."""
        hang = observer.check()
        if failure := observer.failure():
            self._leave(f"{failure}; this rank ends too", _GRACE_S)
        if hang:
            observer.dump_stacks_of_frozen()
            self._leave(f"{hang}; stacks are in {self._folder}", _GRACE_S)

    def _leave(self, reason: str, grace_s: float) -> None:
        print(f"error: rank {self._report.rank}: {reason}", file=sys.stderr, flush=True)
        if self._ended.wait(grace_s):
            return
        os._exit(1)  # the main thread may wait in a collective that nothing interrupts


@contextlib.contextmanager
def watching(folder: Path, group: Group, hang_timeout_s: float) -> Iterator[Liveness]:
    """Reports for this rank while the context lasts; what ends it by an exception is told to the other ranks.

    Collective: no rank watches the others before all have forgotten an earlier try.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if DRIVEN not in os.environ:
        for path in (reports.path_of(folder, group.rank), folder / "notice"):
            path.unlink(missing_ok=True)
    group.barrier()
    liveness = Liveness(folder, group.rank, group.world_size, hang_timeout_s)
    try:
        with _stopped_by_sigterm(liveness):
            yield liveness
    except notice.Preempted:
        raise
    except BaseException as error:
        liveness.failed(f"{type(error).__name__}: {error}")
        raise
    finally:
        liveness.close()


@contextlib.contextmanager
def _stopped_by_sigterm(liveness: Liveness) -> Iterator[None]:
    """SIGTERM asks the group to stop; a second one ends this process. Under a driver, that is the driver's to tell."""
    if DRIVEN in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        liveness.stop("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
