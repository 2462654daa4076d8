"""A run's machines as its launcher last knew them, for whoever looks from the outside: `status`, a page, a service."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from finecut.launcher.reconcile.store import FILE, Node
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder

HOSTS = "hosts"
"""Group of hosts of one's own."""


@dataclass(frozen=True)
class NodeState:
    """One machine. Times are seconds since 1970, money is US dollars.

    Attributes:
      id: EC2's id, or a host's address.
      state: "starting", "admitted", "noticed" (it is to be taken away), "leaving" or "ended".
      market: "ON_DEMAND", "SPOT", "RESERVATION" or "CAPACITY_BLOCK"; "" for a host of one's own.
      since: When it came into its state.
      usd_per_hour: 0 where nobody pays, or where the price is not known.
      cost_usd: From its start until now or its end.
      reason: Why it leaves or has ended.
    """

    id: str
    group: str
    instance_type: str
    zone: str
    market: str
    state: str
    since: float
    address: str
    started_at: float
    usd_per_hour: float
    cost_usd: float
    reason: str


def nodes_of(run: RunFolder, now: float | None = None) -> list[NodeState]:
    """Every machine that the run has had, oldest first; ended ones count for its cost.

    Empty where the run works on this machine. Nothing is written. Raises UserError where the record cannot be read.
    """
    path = run.root / FILE
    if not path.is_file():
        return []
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            rows = connection.execute("SELECT * FROM nodes ORDER BY rowid").fetchall()
            tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'hosts'").fetchall()
            hosts = connection.execute("SELECT * FROM hosts ORDER BY rowid").fetchall() if tables else []
    except sqlite3.Error as error:
        raise UserError(f"{path} cannot be read ({error}); is it of this version, and may you read it?") from None
    at = time.time() if now is None else now
    return [*(_state(Node(**_fields(row)), at) for row in rows), *map(_host, hosts)]


def cost_of(nodes: list[NodeState]) -> float:
    """US dollars of all of them so far."""
    return sum(node.cost_usd for node in nodes)


def _fields(row: sqlite3.Row) -> dict[str, Any]:
    return {"group" if name == "node_group" else name: row[name] for name in row.keys()}  # noqa: SIM118 - a Row iterates its values


def _host(row: sqlite3.Row) -> NodeState:
    address, state, started_at, since = row
    return NodeState(address, HOSTS, "", "", "", state, since, address, started_at, 0.0, 0.0, "")


def _state(node: Node, now: float) -> NodeState:
    return NodeState(
        id=node.instance,
        group=node.group,
        instance_type=node.instance_type,
        zone=node.zone,
        market=node.market,
        state=node.state,
        since=node.since or node.started_at,
        address=node.address,
        started_at=node.started_at,
        usd_per_hour=node.usd_per_hour,
        cost_usd=node.cost(now),
        reason=node.reason,
    )
