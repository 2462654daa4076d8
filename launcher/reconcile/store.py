"""What a launcher means to have and what it knows to be there: a SQLite file in the run folder.

Every change is one durable transaction. A launch is written before its request is sent, with the whole request, so that
whoever comes after a crash sends the same one again. One launcher at a time: the run's lock sees to it, and where that
fails, the terms below.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finecut.proto.config import UserError

FILE = "cluster.sqlite"
"""Name of the store in a run's folder."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS launches (
  token TEXT PRIMARY KEY, node_group TEXT NOT NULL, attempt INTEGER NOT NULL, count INTEGER NOT NULL,
  request TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS nodes (
  instance TEXT PRIMARY KEY, token TEXT NOT NULL, node_group TEXT NOT NULL, address TEXT NOT NULL,
  instance_type TEXT NOT NULL, usd_per_hour REAL NOT NULL, started_at REAL NOT NULL, ended_at REAL,
  state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', zone TEXT NOT NULL DEFAULT '',
  market TEXT NOT NULL DEFAULT '', since REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS hosts (
  address TEXT PRIMARY KEY, state TEXT NOT NULL, started_at REAL NOT NULL, since REAL NOT NULL);
"""

INTENDED, DONE, FAILED = "intended", "done", "failed"
"""States of a launch: it may or may not have happened; its nodes are recorded; it bought nothing."""
STARTING, ADMITTED, NOTICED = "starting", "admitted", "noticed"
LEAVING, ENDED = "leaving", "ended"
"""States of a node: booting or being checked; at work; at work until it is taken away; to be given back; gone."""


@dataclass(frozen=True)
class Launch:
    """A purchase of `count` nodes or none."""

    token: str
    group: str
    attempt: int
    count: int
    request: dict[str, Any]
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Node:
    """One machine that was bought. Times are seconds since 1970.

    Attributes:
      ended_at: None: it is billed still.
      market: As in NodeGroup.Market.
      since: When it came into its state.
    """

    instance: str
    token: str
    group: str
    address: str
    instance_type: str
    usd_per_hour: float
    started_at: float
    ended_at: float | None = None
    state: str = STARTING
    reason: str = ""
    zone: str = ""
    market: str = ""
    since: float = 0.0

    def cost(self, now: float) -> float:
        """US dollars until `now` or its end."""
        return self.usd_per_hour * max(0.0, (self.ended_at or now) - self.started_at) / 3600


class SupersededError(UserError):
    """Another launcher has taken the cluster over; this one must not change anything any more."""


class Store:
    """The file. `crash_point` is called before and after each change; tests end the launcher there.

    Whoever calls `take_over` last may write, and those before it no longer: a launcher that was only frozen, or whose
    lock a network file system has lost, finds out at its next change. `intend` is a change, so it buys nothing either.
    """

    def __init__(self, path: Path, crash_point: Callable[[str], None] = lambda name: None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._crash_point = crash_point
        self._lock = threading.RLock()  # the launcher's thread and its monitor's
        self._term: str | None = None
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(_SCHEMA)

    def cluster(self, name: str) -> str:
        """The id of the run's cluster, chosen once: its name with eight random digits."""
        self._change(
            "cluster", "INSERT OR IGNORE INTO facts VALUES ('cluster', ?)", f"{name[:46]}-{secrets.token_hex(4)}"
        )
        return self.fact("cluster") or ""

    def take_over(self) -> None:
        """Makes this the one launcher that may write."""
        term = secrets.token_hex(8)
        self._change("take over", "INSERT OR REPLACE INTO facts VALUES ('term', ?)", term)
        self._term = term

    def confirm(self) -> None:
        """Raises SupersededError where another launcher has taken over since."""
        if self._term is not None and self.fact("term") != self._term:
            raise SupersededError("another launcher has taken this run's cluster over; this one stops")

    def fact(self, name: str) -> str | None:
        """What was written under a name."""
        rows = self._rows("SELECT value FROM facts WHERE name = ?", name)
        return rows[0][0] if rows else None

    def remember(self, name: str, value: str) -> None:
        """Writes a fact, in place of the one before."""
        self._change(f"fact {name}", "INSERT OR REPLACE INTO facts VALUES (?, ?)", name, value)

    def launches(self, state: str | None = None) -> list[Launch]:
        """All launches, or those in one state, oldest first."""
        rows = self._rows(
            "SELECT token, node_group, attempt, count, request, state, reason FROM launches ORDER BY rowid"
        )
        found = [
            Launch(token, group, attempt, count, json.loads(request), launch_state, reason)
            for token, group, attempt, count, request, launch_state, reason in rows
        ]
        return [launch for launch in found if state in (None, launch.state)]

    def intend(self, launch: Launch) -> None:
        """Writes a launch down before it is sent."""
        self._change(
            "intend",
            "INSERT INTO launches (token, node_group, attempt, count, request, state) VALUES (?, ?, ?, ?, ?, ?)",
            *(launch.token, launch.group, launch.attempt, launch.count, json.dumps(launch.request), INTENDED),
        )

    def failed(self, token: str, reason: str) -> None:
        """A launch has bought nothing and will not."""
        self._change("failed", "UPDATE launches SET state = ?, reason = ? WHERE token = ?", FAILED, reason, token)

    def bought(self, token: str, nodes: list[Node]) -> None:
        """A launch is done: it and its nodes are recorded together. Nodes that are recorded stay as they are."""
        with self._lock:
            self._crash_point("before bought")
            with self._transaction():
                for node in nodes:
                    marks, values = ", ".join("?" * len(vars(node))), tuple(vars(node).values())
                    self._connection.execute(f"INSERT OR IGNORE INTO nodes VALUES ({marks})", values)
                self._connection.execute("UPDATE launches SET state = ? WHERE token = ?", (DONE, token))
            self._crash_point("after bought")

    def host(self, address: str, state: str) -> None:
        """Records a host of one's own, which nobody bought: the reconciler never sees it."""
        now = time.time()
        self._change(
            "host",
            "INSERT INTO hosts VALUES (?, ?, ?, ?) "
            "ON CONFLICT (address) DO UPDATE SET state = excluded.state, since = excluded.since",
            *(address, state, now, now),
        )

    def nodes(self, *states: str) -> list[Node]:
        """Nodes in these states, or all but those that have ended, oldest first."""
        wanted = states or (STARTING, ADMITTED, NOTICED, LEAVING)
        rows = self._rows("SELECT * FROM nodes ORDER BY rowid")
        return [node for row in rows if (node := Node(*row)).state in wanted]

    def move(self, instance: str, state: str, reason: str = "", ended_at: float | None = None) -> None:
        """Changes a node's state."""
        self._change(
            f"move to {state}",
            "UPDATE nodes SET since = CASE state WHEN ? THEN since ELSE ? END, state = ?, reason = ?, "
            "ended_at = COALESCE(ended_at, ?) WHERE instance = ?",
            *(state, time.time(), state, reason, ended_at, instance),
        )

    def place(self, instance: str, address: str) -> None:
        """Records the address that a node has got."""
        self._change("place", "UPDATE nodes SET address = ? WHERE instance = ?", address, instance)

    def cost(self, now: float) -> float:
        """US dollars so far, of every node that was ever bought."""
        return sum(Node(*row).cost(now) for row in self._rows("SELECT * FROM nodes"))

    def close(self) -> None:
        self._connection.close()

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def _change(self, name: str, query: str, *values: Any) -> None:
        with self._lock:
            self._crash_point(f"before {name}")
            with self._transaction():
                self._connection.execute(query, values)
            self._crash_point(f"after {name}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, and nothing once another launcher has taken over."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self.confirm()
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
