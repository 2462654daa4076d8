"""A monitor with a cloud and a Ray that are only remembered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finecut.launcher.node.secret import NodeSecret
from finecut.launcher.providers.aws.monitor import Monitor
from finecut.launcher.providers.aws.names import Names
from finecut.launcher.providers.membership import Member
from finecut.launcher.reconcile import store as states
from finecut.launcher.reconcile.reconciler import Reconciler
from finecut.launcher.reconcile.store import Store
from finecut.launcher.reconcile.testing import FakeCloud
from finecut.proto import job_pb2


class FakeApi:
    """Parameters that were put, and messages to be received."""

    def __init__(self) -> None:
        self.parameters: dict[str, str] = {}
        self.messages: list[str] = []

    def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        if operation == "PutParameter":
            self.parameters[parameters["Name"]] = parameters["Value"]
        if operation == "ReceiveMessage":
            bodies, self.messages = self.messages, []
            return {"Messages": [{"Body": body, "ReceiptHandle": "x"} for body in bodies]}
        return {}


class FakeMembership:
    """Ray's members, and who was drained."""

    def __init__(self) -> None:
        self.joined: dict[str, Member] = {}
        self.drained: list[str] = []
        self.overdue: list[str] = []
        self.ends = False
        self.minted = 0
        self.unused: set[str] = set()
        self.missing = 0
        self.is_at_work = False

    def members(self) -> dict[str, Member]:
        return self.joined

    def secret(self, instance: str, address: str, peers: Sequence[str] = ()) -> NodeSecret:
        self.minted += 1
        self.overdue = [name for name in self.overdue if name != instance]
        return NodeSecret("head:1", address, "token", f"certificate {self.minted}", "key", "authority", tuple(peers))

    def due(self) -> list[str]:
        return self.overdue

    def renew_head(self) -> None:
        """It has no files here."""

    def is_ending(self) -> bool:
        return self.ends

    def idle(self) -> frozenset[str]:
        return frozenset(self.unused)

    def waiting(self, role: str, cpus: int, gpus: int) -> int:
        return self.missing

    def forget(self, instance: str) -> None:
        self.overdue = [name for name in self.overdue if name != instance]

    def drain(self, instance: str, reason: str, seconds: float, is_idle: bool = False) -> bool:
        if is_idle and self.is_at_work:
            return False
        self.drained.append(instance)
        return True


class World:
    """A monitor of two nodes with all that it looks at."""

    def __init__(self, folder: Path, budget: float = 0.0) -> None:
        self.api, self.ray, self.cloud = FakeApi(), FakeMembership(), FakeCloud()
        self.store = Store(folder / "cluster.sqlite")
        self.store.remember("queue", "url")
        self.said: list[str] = []
        job = job_pb2.JobConfig(name="tiny")
        job.storage.root = str(folder / "runs")
        if budget:
            job.cluster.max_cost_usd = budget
        reconciler = Reconciler(self.store, self.cloud, {"train": 2}, self.said.append)
        reconciler.converge()
        self.monitor = Monitor(
            job,
            Names("tiny-1"),
            self.api,
            self.store,
            reconciler,
            self.ray,
            self.said.append,  # type: ignore[arg-type]
        )

    def join_all(self) -> None:
        self.monitor.round()
        for name in self.cloud.live:
            self.ray.joined.setdefault(name, Member(is_alive=True, is_draining=False))
        self.monitor.round()

    def state(self, instance: str) -> str:
        every = (states.STARTING, states.ADMITTED, states.NOTICED, states.LEAVING, states.ENDED)
        return next(node.state for node in self.store.nodes(*every) if node.instance == instance)
