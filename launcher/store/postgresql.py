"""PostgreSQL: a server that several services share."""

import queue
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

from finecut.launcher.store.database import DuplicateError, StoreUnavailableError

_CONNECT_SECONDS = 10
_IDLE_CONNECTIONS = 16


class PostgresqlDatabase:
    """Connections are kept and used again; one that the server has closed is replaced.

    Args:
      url: A libpq URL without a password, which comes from PGPASSWORD, ~/.pgpass or a client certificate.
    """

    number_type = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    bytes_type = "BYTEA"

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: queue.LifoQueue[psycopg.Connection[Any]] = queue.LifoQueue(_IDLE_CONNECTIONS)

    @contextmanager
    def write(self) -> Iterator["_Transaction"]:
        connection = self._take()
        try:
            with connection.transaction():
                yield _Transaction(connection)
        except psycopg.errors.UniqueViolation as error:
            raise DuplicateError(str(error)) from None
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            connection.close()
            raise StoreUnavailableError(f"PostgreSQL: {error}") from error
        finally:
            self._give(connection)

    read = write

    def close(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _take(self) -> "psycopg.Connection[Any]":
        with suppress(queue.Empty):
            while True:
                connection = self._idle.get_nowait()
                if not connection.closed and not connection.broken:
                    return connection
        try:
            return psycopg.connect(self._url, autocommit=True, connect_timeout=_CONNECT_SECONDS)
        except psycopg.OperationalError as error:
            raise StoreUnavailableError(f"PostgreSQL: {error}") from error

    def _give(self, connection: "psycopg.Connection[Any]") -> None:
        try:
            self._idle.put_nowait(connection)
        except queue.Full:
            connection.close()


class _Transaction:
    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self._connection = connection
        self._now: float | None = None

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(statement.replace("?", "%s").encode(), parameters)
        return cursor.fetchall() if cursor.description else []

    def execute_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(statement.replace("?", "%s").encode(), rows)

    def now(self) -> float:
        if self._now is None:  # each question is a way to the server and back
            self._now = float(self.execute("SELECT EXTRACT(EPOCH FROM clock_timestamp())")[0][0])
        return self._now

    def lock(self, name: str) -> None:
        self.execute("SELECT pg_advisory_xact_lock(?)", (zlib.crc32(f"finecut {name}".encode()),))
