"""The job store: submissions that happen once, a queue with leases, events.

A job belongs to whoever holds its lease. Each lease has a number, the fence; every write of a holder names its fence
and changes nothing when it is not the newest. So of two services on one store only one can act for a job.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from finecut.launcher.store import schema
from finecut.launcher.store.database import Database, Transaction
from finecut.launcher.store.records import JobRecord, Lease, LeaseLostError, NewJob, Progress
from finecut.launcher.store.rows import COLUMNS, INSERT_EVENT, numbered, select
from finecut.launcher.store.submissions import Submissions
from finecut.proto import service_pb2

_HELD = "id = ? AND owner = ? AND fence = ? AND state = ?"


class JobStore:
    """All that a service keeps. Every method is one transaction and may be called from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        schema.create(database)
        self._submissions = Submissions(database)

    def close(self) -> None:
        self._database.close()

    def submit(self, new: NewJob, max_active_jobs: int) -> JobRecord:
        """Stores a job, or returns the one that the same request has made before.

        Raises:
          RequestReusedError: The request id has made another job.
          FolderInUseError, QuotaError: As they say. Nothing is stored.
        """
        return self._submissions.submit(new, max_active_jobs)

    def get(self, job_id: str) -> JobRecord | None:
        with self._database.read() as transaction:
            return _one(transaction, job_id)

    def list_jobs(self, principal: str | None, state: int, before: int | None, count: int) -> list[JobRecord]:
        """Jobs, newest first: of one principal or of all, in one state or (0) any, older than number `before`."""
        conditions, parameters = ["1 = 1"], list[Any]()
        for condition, value in (("principal = ?", principal), ("state = ?", state or None), ("number < ?", before)):
            if value is not None:
                conditions.append(condition)
                parameters.append(value)
        statement = f"SELECT {COLUMNS} FROM finecut_jobs WHERE {' AND '.join(conditions)} ORDER BY number DESC LIMIT ?"
        with self._database.read() as transaction:
            return [JobRecord(*row) for row in transaction.execute(statement, [*parameters, count])]

    def events(self, job_id: str, after: int, count: int) -> list[service_pb2.JobEvent]:
        """Up to `count` events of a job, in order, with numbers above `after`."""
        statement = (
            "SELECT sequence, event FROM finecut_events WHERE job = ? AND sequence > ? ORDER BY sequence LIMIT ?"
        )
        with self._database.read() as transaction:
            rows = transaction.execute(statement, (job_id, after, count))
        found = []
        for sequence, serialized in rows:
            event = service_pb2.JobEvent.FromString(serialized)
            event.sequence = sequence
            found.append(event)
        return found

    def sequences(self, job_ids: Collection[str]) -> dict[str, int]:
        """Numbers of the newest events of jobs."""
        if not job_ids:
            return {}
        marks = ", ".join("?" * len(job_ids))
        with self._database.read() as transaction:
            rows = transaction.execute(f"SELECT id, sequence FROM finecut_jobs WHERE id IN ({marks})", list(job_ids))
        return dict(rows)

    def count_by_state(self) -> dict[int, int]:
        """How many jobs are in each state that any is in."""
        with self._database.read() as transaction:
            return dict(transaction.execute("SELECT state, COUNT(*) FROM finecut_jobs GROUP BY state"))

    def request_cancel(self, job_id: str) -> JobRecord | None:
        """Ends a job that was never started, and tells the holder of any other active one. Repeated: no change."""
        with self._database.write() as transaction:
            transaction.lock("queue")
            job = _one(transaction, job_id)
            if job is None or not job.is_active or job.cancel_requested:
                return job
            transaction.execute("UPDATE finecut_jobs SET cancel_requested = 1 WHERE id = ?", (job_id,))
            if job.state == service_pb2.PENDING and not job.fence:
                _end(transaction, job, service_pb2.CANCELLED, "", job.stages)
            return _one(transaction, job_id)

    def claim(self, owner: str, seconds: float, max_running: Mapping[str, int], default_max: int) -> Lease | None:
        """Leases one job to `owner`: first one whose lease has run out, then the turn of the least busy principal.

        Args:
          max_running: How many jobs of a principal may run at once; `default_max` for others.
        """
        with self._database.write() as transaction:
            transaction.lock("queue")
            now = transaction.now()
            job_id = _lapsed(transaction, now) or _next(transaction, max_running, default_max)
            if job_id is None:
                return None
            rows = transaction.execute(
                "UPDATE finecut_jobs SET state = ?, owner = ?, fence = fence + 1, lease_until = ?,"
                f" attempts = attempts + 1 WHERE id = ? RETURNING {COLUMNS}",
                (service_pb2.RUNNING, owner, now + seconds, job_id),
            )
            job = JobRecord(*rows[0])
            return Lease(job, job.fence, seconds)

    def disown(self, owner: str) -> None:
        """Lets go of all leases of a service that is known to be gone."""
        with self._database.write() as transaction:
            transaction.execute(
                "UPDATE finecut_jobs SET lease_until = 0 WHERE owner = ? AND state = ?", (owner, service_pb2.RUNNING)
            )

    def renew(self, owner: str, seconds: float) -> dict[str, Lease]:
        """Prolongs the leases that `owner` still holds, and returns them by job. Those that ran out stay lost."""
        with self._database.write() as transaction:
            now = transaction.now()
            rows = transaction.execute(
                "UPDATE finecut_jobs SET lease_until = ? WHERE owner = ? AND state = ? AND lease_until > ?"
                f" RETURNING {COLUMNS}",
                (now + seconds, owner, service_pb2.RUNNING, now),
            )
        jobs = [JobRecord(*row) for row in rows]
        return {job.id: Lease(job, job.fence, seconds) for job in jobs}

    def record(self, job_id: str, owner: str, fence: int, progress: Progress) -> None:
        """Adds events and remembers what they were read from, at once. Raises LeaseLostError."""
        with self._database.write() as transaction:
            job = _held(transaction, job_id, owner, fence)
            last = _append(transaction, job.id, job.sequence, progress.events)
            transaction.execute(
                "UPDATE finecut_jobs SET sequence = ?, stages = ?, positions = ?, attempts = ? WHERE id = ?",
                (last, progress.stages, progress.positions, 0 if progress.has_advanced else job.attempts, job_id),
            )

    def requeue(self, job_id: str, owner: str, fence: int, message: str) -> None:
        """Puts a job back into the queue, with a line for people. Raises LeaseLostError."""
        with self._database.write() as transaction:
            job = _held(transaction, job_id, owner, fence)
            events = (service_pb2.JobEvent(message=message), service_pb2.JobEvent(state=service_pb2.PENDING))
            transaction.execute(
                "UPDATE finecut_jobs SET state = ?, owner = '', lease_until = 0, sequence = ? WHERE id = ?",
                (service_pb2.PENDING, _append(transaction, job.id, job.sequence, events), job_id),
            )

    def finish(self, job_id: str, owner: str, fence: int, state: int, error: str, stages: bytes) -> None:
        """Ends a job. Raises LeaseLostError."""
        with self._database.write() as transaction:
            _end(transaction, _held(transaction, job_id, owner, fence), state, error, stages)


def _one(transaction: Transaction, job_id: str) -> JobRecord | None:
    found = select(transaction, "id = ?", job_id)
    return found[0] if found else None


def _append(transaction: Transaction, job_id: str, last: int, events: Iterable[service_pb2.JobEvent]) -> int:
    """Stores events after number `last`; the number of the last one then."""
    now = transaction.now()
    added = [numbered(job_id, sequence, event, now) for sequence, event in enumerate(events, start=last + 1)]
    if added:
        transaction.execute_many(INSERT_EVENT, added)
    return last + len(added)


def _held(transaction: Transaction, job_id: str, owner: str, fence: int) -> JobRecord:
    """The job, if this lease is its newest and has not run out. Holds it against other writers."""
    rows = transaction.execute(
        f"UPDATE finecut_jobs SET owner = owner WHERE {_HELD} AND lease_until > ? RETURNING {COLUMNS}",
        (job_id, owner, fence, service_pb2.RUNNING, transaction.now()),
    )
    if not rows:
        raise LeaseLostError(job_id)
    return JobRecord(*rows[0])


def _end(transaction: Transaction, job: JobRecord, state: int, error: str, stages: bytes) -> None:
    events = [service_pb2.JobEvent(message=error)] if error else []
    last = _append(transaction, job.id, job.sequence, [*events, service_pb2.JobEvent(state=state)])  # type: ignore[arg-type]
    transaction.execute(
        "UPDATE finecut_jobs SET state = ?, error = ?, stages = ?, ended_at = ?, owner = '', sequence = ? WHERE id = ?",
        (state, error, stages, transaction.now(), last, job.id),
    )


def _lapsed(transaction: Transaction, now: float) -> str | None:
    rows = transaction.execute(
        "SELECT id FROM finecut_jobs WHERE state = ? AND lease_until <= ? ORDER BY number LIMIT 1",
        (service_pb2.RUNNING, now),
    )
    return rows[0][0] if rows else None


def _next(transaction: Transaction, max_running: Mapping[str, int], default_max: int) -> str | None:
    """The oldest pending job of the principal that has the fewest running; a cancelled one goes first."""
    counts = "SELECT principal, COUNT(*), MIN(number) FROM finecut_jobs WHERE state = ? GROUP BY principal"
    running = {row[0]: row[1] for row in transaction.execute(counts, (service_pb2.RUNNING,))}
    cancelled = transaction.execute(
        "SELECT id FROM finecut_jobs WHERE state = ? AND cancel_requested = 1 LIMIT 1", (service_pb2.PENDING,)
    )
    if cancelled:
        return cancelled[0][0]
    turns = [
        (running.get(principal, 0), oldest)
        for principal, _, oldest in transaction.execute(counts, (service_pb2.PENDING,))
        if running.get(principal, 0) < max_running.get(principal, default_max)
    ]
    if not turns:
        return None
    return transaction.execute("SELECT id FROM finecut_jobs WHERE number = ?", (min(turns)[1],))[0][0]
