"""Rows of the tables as values, and back."""

from dataclasses import fields
from typing import Any

from finecut.launcher.store.database import Transaction
from finecut.launcher.store.records import JobRecord
from finecut.proto import service_pb2

COLUMNS = ", ".join(field.name for field in fields(JobRecord))
INSERT_EVENT = "INSERT INTO finecut_events (job, sequence, event) VALUES (?, ?, ?)"


def select(transaction: Transaction, condition: str, *parameters: Any) -> list[JobRecord]:
    """The jobs for which a condition holds."""
    found = transaction.execute(f"SELECT {COLUMNS} FROM finecut_jobs WHERE {condition}", parameters)
    return [JobRecord(*row) for row in found]


def numbered(job_id: str, sequence: int, event: service_pb2.JobEvent, now: float) -> tuple[str, int, bytes]:
    """The row of an event. One without a time gets `now`."""
    if not event.HasField("at"):
        event.at.FromNanoseconds(round(now * 1e9))
    return job_id, sequence, event.SerializeToString()
