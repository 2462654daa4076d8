"""Stores what is submitted at the same time in one transaction: making it durable takes longer than all the rest.

    caller \\
    caller  >-- waiting --> whoever's turn it is --> one transaction --> all callers' answers
    caller /
"""

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from finecut.launcher.store import schema
from finecut.launcher.store.database import Database, DuplicateError, StoreUnavailableError, Transaction
from finecut.launcher.store.records import FolderInUseError, JobRecord, NewJob, QuotaError, RequestReusedError
from finecut.launcher.store.rows import COLUMNS, INSERT_EVENT, numbered, select
from finecut.proto import service_pb2

_MOST_AT_ONCE = 64
_INSERT = f"""
INSERT INTO finecut_jobs
(id, principal, request_id, config, config_digest, run_folder, state, stages, created_at, sequence)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING {COLUMNS}
"""


@dataclass
class _Submission:
    """One caller's; `answer` None: it waits."""

    new: NewJob
    max_active: int
    answer: JobRecord | Exception | None = None


class Submissions:
    """Of one store. May be called from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turn = threading.Lock()
        self._changing = threading.Lock()
        self._waiting: list[_Submission] = []

    def submit(self, new: NewJob, max_active: int) -> JobRecord:
        """See JobStore.submit."""
        own = _Submission(new, max_active)
        with self._changing:
            self._waiting.append(own)
        while own.answer is None:
            with self._turn:
                if own.answer is None:
                    with self._changing:
                        batch, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
                    self._answer(batch)
        if isinstance(own.answer, Exception):
            raise own.answer
        return own.answer

    def _answer(self, batch: list[_Submission]) -> None:
        """Leaves an answer in each; what one of several breaks is tried again one by one."""
        try:
            with self._database.write() as transaction:
                answers = _store(transaction, batch)
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, StoreUnavailableError):
                for each in batch:
                    self._answer([each])
                return
            # The index saw what another principal's transaction had not committed yet.
            answers = [FolderInUseError() if isinstance(error, DuplicateError) else error] * len(batch)
        for each, answer in zip(batch, answers, strict=True):
            each.answer = answer


def _store(transaction: Transaction, batch: Sequence[_Submission]) -> list[JobRecord | Exception]:
    """The job of each submission, stored now or before, or why there is none."""
    known: dict[tuple[str, str], JobRecord] = {}
    active: dict[str, int] = {}
    # In one order, or two services could wait for each other.
    for principal in sorted({each.new.principal for each in batch}):
        transaction.lock(f"principal {principal}")
        asked = [each.new.request_id for each in batch if each.new.principal == principal]
        marks = ", ".join("?" * len(asked))
        for job in select(transaction, f"principal = ? AND request_id IN ({marks})", principal, *asked):
            known[principal, job.request_id] = job
        active[principal] = _count_active(transaction, principal)
    answers: list[JobRecord | Exception] = []
    events, now = [], transaction.now()
    for each in batch:
        new, key = each.new, (each.new.principal, each.new.request_id)
        if key in known:
            is_same = known[key].config_digest == new.config_digest
            answers.append(known[key] if is_same else RequestReusedError())
        elif active[new.principal] >= each.max_active:
            answers.append(QuotaError())
        else:
            job = known[key] = _insert(transaction, new, now)
            active[new.principal] += 1
            answers.append(job)
            events.append(numbered(job.id, 1, service_pb2.JobEvent(state=service_pb2.PENDING), now))
    if events:
        transaction.execute_many(INSERT_EVENT, events)
    return answers


def _count_active(transaction: Transaction, principal: str) -> int:
    counted = transaction.execute(
        "SELECT COUNT(*) FROM finecut_jobs WHERE principal = ? AND state IN (?, ?)", (principal, *schema.ACTIVE)
    )
    return counted[0][0]


def _insert(transaction: Transaction, new: NewJob, now: float) -> JobRecord:
    pending = service_pb2.PENDING
    stages = service_pb2.Job(stages=[service_pb2.StageStatus(name=name, state=pending) for name in new.stages])
    inserted = transaction.execute(
        _INSERT,
        (
            secrets.token_hex(8),
            new.principal,
            new.request_id,
            new.config,
            new.config_digest,
            new.run_folder,
            pending,
            stages.SerializeToString(),
            now,
            1,
        ),
    )
    return JobRecord(*inserted[0])
