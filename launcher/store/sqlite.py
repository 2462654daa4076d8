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
_WRITER = 0  # no thread has this number


class _Group:
    """Transactions that are committed together, because making them durable takes longer than all else."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.error: sqlite3.Error | None = None


class SqliteDatabase:
    """A connection for each thread that reads, and one for all that write, in turns.

    Whoever writes while others wait for their turn leaves the commit to the last of them, and waits for it.
    """

    number_type = "INTEGER PRIMARY KEY AUTOINCREMENT"
    bytes_type = "BLOB"

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600, exist_ok=True)
        self._path = path
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self._waiting = 0
        self._group: _Group | None = None
        self._connections: dict[int, sqlite3.Connection] = {}

    @contextmanager
    def read(self) -> Iterator["_Transaction"]:
        with _translated():
            connection = self._connection(threading.get_ident())
            connection.execute("BEGIN")
            try:
                yield _Transaction(connection)
            finally:
                connection.execute("ROLLBACK")

    @contextmanager
    def write(self) -> Iterator["_Transaction"]:
        with _translated():
            with self._my_turn():
                connection = self._connection(_WRITER)
                group = self._join_group(connection)
                try:
                    connection.execute("SAVEPOINT mine")
                    yield _Transaction(connection)
                except BaseException:
                    connection.execute("ROLLBACK TO mine")
                    raise
                finally:
                    try:
                        connection.execute("RELEASE mine")
                    finally:  # whatever happened (a full disk undoes the whole group), nobody may wait for ever
                        if not self._waiting:
                            self._commit(connection, group)
            group.ended.wait()
            if group.error is not None:
                raise group.error

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        with self._counting:
            self._waiting += 1
        with self._turn:
            with self._counting:
                self._waiting -= 1
            yield

    def _join_group(self, connection: sqlite3.Connection) -> _Group:
        if self._group is None:
            connection.execute("BEGIN IMMEDIATE")
            self._group = _Group()
        return self._group

    def _commit(self, connection: sqlite3.Connection, group: _Group) -> None:
        self._group = None
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            group.error = error
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        finally:
            group.ended.set()

    def close(self) -> None:
        with self._turn:
            while self._connections:
                self._connections.popitem()[1].close()

    def _connection(self, thread: int) -> sqlite3.Connection:
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
