"""A record of an input file, and a record that cannot be used."""

from dataclasses import dataclass, field
from typing import Any


class RecordError(ValueError):
    """Why one record cannot be used, in words that follow "file:line: "."""


@dataclass(frozen=True)
class Record:
    """One record as it was read."""

    source: str  # the source's name in the job file
    place: str  # "dialogues.jsonl:17" or "dialogues.parquet: row 17", both from 1
    content: Any  # the parsed JSON value, or a row as a dict
    num_bytes: int = field(default=0, compare=False)  # in its file, about; bounds how many are held together


@dataclass(frozen=True)
class BadRecord:
    """A record that is left out. It is always reported, and counts against the error budget."""

    source: str
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"
