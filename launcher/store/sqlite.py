"""SQLite: one file, one service. The default."""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finecut.launcher.store.database import DuplicateError, StoreUnavailableError

_SECONDS_TO_WAIT = 30.0  # for another process that writes


class SqliteDatabase:
    """A connection for each thread. Writers of this process take turns by a lock, which is fairer than retrying."""

    number_type = "INTEGER PRIMARY KEY AUTOINCREMENT"
    bytes_type = "BLOB"

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600, exist_ok=True)
        self._path = path
        self._writing = threading.Lock()
        self._connections: dict[int, sqlite3.Connection] = {}

    @contextmanager
    def read(self) -> Iterator["_Transaction"]:
        with _translated():
            connection = self._connection()
            connection.execute("BEGIN")
            try:
                yield _Transaction(connection)
            finally:
                connection.execute("ROLLBACK")

    @contextmanager
    def write(self) -> Iterator["_Transaction"]:
        with self._writing, _translated():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield _Transaction(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        with self._writing:
            while self._connections:
                self._connections.popitem()[1].close()

    def _connection(self) -> sqlite3.Connection:
        thread = threading.get_ident()
        if thread not in self._connections:
            connection = sqlite3.connect(
                self._path, timeout=_SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # an accepted job outlives a power cut, not only a kill
            self._connections[thread] = connection
        return self._connections[thread]


class _Transaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, parameters).fetchall()

    def execute_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        self._connection.executemany(statement, rows)

    def now(self) -> float:
        return time.time()  # SQLite's users share a machine

    def lock(self, name: str) -> None:
        pass  # BEGIN IMMEDIATE lets one writer in at a time


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise DuplicateError(str(error)) from None
    except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:  # the second: closed while we were waiting
        raise StoreUnavailableError(f"SQLite: {error}") from error
