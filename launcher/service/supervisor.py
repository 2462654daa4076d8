"""Runs the jobs of a store: claims them, starts a launcher process for each, keeps the leases, records what happens.

    queue --claim--> launcher process --events--> store
      ^                 |       |
      +--- crashed -----+       +--- ended --> SUCCEEDED, FAILED or CANCELLED

Everything happens in one thread. Every write to the store names the lease; when the store refuses one, another service
has the job, and the process here is killed without a word.
"""

import contextlib
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from finecut.launcher import runs
from finecut.launcher.service import children
from finecut.launcher.service.child import now
from finecut.launcher.service.metrics import Metrics
from finecut.launcher.service.run_events import RunEvents
from finecut.launcher.service.running import Running, Settings
from finecut.launcher.store.database import StoreUnavailableError
from finecut.launcher.store.records import Lease, LeaseLostError
from finecut.launcher.store.store import JobStore
from finecut.proto import service_pb2
from finecut.proto.run import RunFolder

_log = logging.getLogger("finecut.service")
_MAX_ATTEMPTS = 5  # launchers of a job in a row that crash without progress; then the job is at fault
_POLL_SECONDS = 0.5
_LEAST_SECONDS = 0.05
_SECONDS_BETWEEN_RELEASES = 10.0
_SECONDS_TO_CANCEL = 60.0  # for a launcher to give back what it holds
_SECONDS_TO_RELEASE = 600.0  # for another one to do it where the first was killed


class Supervisor:
    """Call `run` in a thread of its own, and `stop` to end it.

    Args:
      changed: Called with a job's id when something new can be seen of it.
    """

    def __init__(self, store: JobStore, settings: Settings, metrics: Metrics, changed: Callable[[str], None]) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._changed = changed
        self._running: dict[str, Running] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._renew_at = 0.0
        self._woken = False

    def wake(self, job_id: str) -> None:
        """Says that a job was submitted or cancelled. From any thread.

        A submission that has to wait for its turn is no reason to look: many come at once.
        """
        if job_id in self._running or len(self._running) < self._settings.max_running:
            self._wake.set()

    def stop(self) -> None:
        """Asks `run` to have all launchers write checkpoints, to give the jobs back, and to return."""
        self._stop.set()
        self._wake.set()

    def run(self) -> None:
        """Works until `stop`. A store that does not answer is asked again; launchers end by themselves meanwhile."""
        while not self._stop.is_set():
            try:
                self._turn()
            except StoreUnavailableError as error:
                _log.error("the store does not answer: %s", error)
            time.sleep(_LEAST_SECONDS)  # many submissions at once are one reason to look
            self._woken = self._wake.wait(_POLL_SECONDS)
            self._wake.clear()
        self._wind_up()

    def _turn(self) -> None:
        self._renew()
        for running in list(self._running.values()):
            self._guarded(running, self._look_after)
        while len(self._running) < self._settings.max_running:
            asked, settings = now(), self._settings
            lease = self._store.claim(settings.owner, settings.lease_seconds, settings.max_running_of, sys.maxsize)
            if lease is None:
                return
            self._take(lease, asked)

    def _renew(self) -> None:
        """Prolongs all leases in time; a lease counts from before the store was asked."""
        asked = now()
        if not self._running or (asked < self._renew_at and not self._woken):
            return
        held = self._store.renew(self._settings.owner, self._settings.lease_seconds)
        self._renew_at = asked + self._settings.lease_seconds / 5
        for job_id, running in list(self._running.items()):
            lease = held.get(job_id)
            if lease is None or lease.fence != running.fence:
                self._let_go(running)
                continue
            running.leased_at = asked
            if running.child:
                running.child.extend(asked, self._settings.lease_seconds)
            if lease.job.cancel_requested and not running.cancelling:
                self._cancel(running)

    def _take(self, lease: Lease, asked: float) -> None:
        job = lease.job
        running = Running(job, lease.fence, RunEvents(job, job.job_config()), asked)
        self._running[job.id] = running
        _log.info("job is ours", extra={"job": job.id, "principal": job.principal})
        self._guarded(running, self._look_after)

    def _guarded(self, running: Running, work: Callable[[Running], None]) -> None:
        """Does something for one job; what goes wrong with it does not touch the others."""
        try:
            work(running)
        except LeaseLostError:
            self._let_go(running)
        except StoreUnavailableError:
            raise
        except Exception as error:
            _log.error("job cannot be looked after", exc_info=error, extra={"job": running.job.id})
            if running.child:
                running.child.kill()
            self._end(running, service_pb2.FAILED, f"the service could not run it: {type(error).__name__}")

    def _look_after(self, running: Running) -> None:
        if running.child is None:
            self._start(running)
            return
        code = running.child.exit_code  # before the events: what an ended launcher has written is then all there is
        self._record(running)
        if code is not None:
            self._ended(running, code)
        elif now() > running.kill_at:
            running.child.kill()

    def _record(self, running: Running) -> None:
        if progress := running.events.read():
            self._store.record(running.job.id, self._settings.owner, running.fence, progress)
            running.advanced |= progress.has_advanced
            self._changed(running.job.id)

    def _start(self, running: Running) -> None:
        job, config = running.job, running.job.job_config()
        pid = runs.launcher_pid(RunFolder.of(config))
        if pid is not None and not running.waits:
            running.waits = True
            waits = service_pb2.JobEvent(message=f"waits for another launcher of this run to end (process {pid})")
            self._store.record(job.id, self._settings.owner, running.fence, running.events.note(waits))
        if pid is not None or now() < running.start_at:
            return
        running.releases = running.cancelling = bool(job.cancel_requested)
        folder = self._settings.folder / "jobs" / job.id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not running.releases:
            begun = service_pb2.JobEvent(state=service_pb2.RUNNING)
            self._store.record(job.id, self._settings.owner, running.fence, running.events.note(begun))
        verb = "release" if running.releases else "run"
        running.child = children.Child(folder, config, verb, self._settings.module)
        running.child.extend(running.leased_at, self._settings.lease_seconds)
        running.kill_at = now() + _SECONDS_TO_RELEASE if running.releases else math.inf
        self._metrics.launchers_started.inc()
        self._changed(job.id)

    def _cancel(self, running: Running) -> None:
        running.cancelling = True
        if running.child:
            running.child.interrupt(signal.SIGINT)
            running.kill_at = now() + _SECONDS_TO_CANCEL

    def _ended(self, running: Running, code: int) -> None:
        """What the end of a launcher means for its job."""
        assert running.child is not None
        ended = f"its launcher ended with {children.ending(code)}"
        if running.releases and code == 0:
            self._end(running, service_pb2.CANCELLED, "")
        elif running.releases:
            _log.error("cannot give back what it holds: %s", ended, extra={"job": running.job.id})
            running.child, running.start_at = None, now() + _SECONDS_BETWEEN_RELEASES
        elif code == 0:
            self._end(running, service_pb2.SUCCEEDED, "", running.events.all_done())
        elif running.cancelling:
            running.child, running.job = None, replace(running.job, cancel_requested=1)  # the next one releases
        elif code in (1, 2):
            self._end(
                running,
                service_pb2.FAILED,
                running.child.reason() or ended,
            )
        elif running.job.attempts >= _MAX_ATTEMPTS and not running.advanced:
            self._end(running, service_pb2.FAILED, f"{ended}, {_MAX_ATTEMPTS} times in a row")
        else:
            self._again(running, f"{ended}; it goes on from its last checkpoint")

    def _again(self, running: Running, message: str) -> None:
        self._store.requeue(running.job.id, self._settings.owner, running.fence, message)
        self._forget(running)

    def _end(self, running: Running, state: int, error: str, stages: bytes | None = None) -> None:
        with contextlib.suppress(LeaseLostError):
            stages = running.events.last() if stages is None else stages
            self._store.finish(running.job.id, self._settings.owner, running.fence, state, error, stages)
            name = service_pb2.JobState.Name(state)  # type: ignore[arg-type]
            _log.info("job ended: %s", name, extra={"job": running.job.id, "principal": running.job.principal})
        self._forget(running)

    def _let_go(self, running: Running) -> None:
        """Another service has the job now, or will have; nothing is written."""
        _log.warning("the lease is lost", extra={"job": running.job.id})
        self._metrics.leases_lost.inc()
        if running.child:
            running.child.kill()
        self._forget(running)

    def _forget(self, running: Running) -> None:
        self._running.pop(running.job.id, None)
        self._changed(running.job.id)

    def _wind_up(self) -> None:
        """Has launchers save and stop, and gives their jobs back to the queue."""
        for running in self._running.values():
            if running.child and not running.cancelling:
                running.child.interrupt(signal.SIGTERM)
        deadline = now() + self._settings.seconds_to_checkpoint
        while self._running and now() < deadline:
            with contextlib.suppress(StoreUnavailableError):
                self._renew()
                for running in list(self._running.values()):
                    self._guarded(running, self._give_back)
            time.sleep(0.1)
        for running in self._running.values():
            if running.child:
                running.child.kill()
        with contextlib.suppress(StoreUnavailableError):
            self._store.disown(self._settings.owner)

    def _give_back(self, running: Running) -> None:
        if running.child is None:
            self._again(running, "the service stopped")
            return
        code = running.child.exit_code
        if code is None:
            return
        self._record(running)
        if code == 0 or running.cancelling:
            self._ended(running, code)
        else:
            self._again(running, "the service stopped; the job goes on from its last checkpoint")
