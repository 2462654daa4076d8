"""The interface of databases: a transaction that runs SQL which SQLite and PostgreSQL both understand."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol


class StoreUnavailableError(Exception):
    """The database cannot be reached now. The same call made again finds what this one may have done."""


class DuplicateError(Exception):
    """A row breaks a unique index; the transaction is undone."""


class Transaction(Protocol):
    """Statements that take effect together or not at all.

    They mark parameters with "?" and hold no other question mark and no percent sign.
    """

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Runs one statement and returns its rows. Raises DuplicateError where it breaks a unique index."""

    def execute_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Runs one statement for each row of parameters."""

    def now(self) -> float:
        """Seconds since 1970 by the clock that all services of this database share; may stand still in a transaction.

        To be asked once the transaction holds its locks.
        """

    def lock(self, name: str) -> None:
        """Waits for, and holds to the end, a lock that all who write to this database share."""


class Database(Protocol):
    """What a store stands on. Every method may be called from any thread.

    Attributes:
      number_type: Type of a key that numbers rows by itself.
      bytes_type: Type of bytes.
    """

    number_type: str
    bytes_type: str

    def read(self) -> AbstractContextManager[Transaction]:
        """A transaction that only reads. Raises StoreUnavailableError."""

    def write(self) -> AbstractContextManager[Transaction]:
        """A transaction that is durable once the block is left, and undone when it is left by an exception."""

    def close(self) -> None:
        """Closes the connections of all threads."""
