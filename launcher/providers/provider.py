"""The interface of providers: plan is pure, apply and release may be repeated, observe looks."""

import sys
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from finecut.proto import job_pb2


@dataclass(frozen=True)
class Purchase:
    """What a provider that rents machines would send and what it would cost; secrets are not in it.

    Attributes:
      requests: Whole requests in the order in which they would be sent: a group's first, then its fallbacks.
      order: The same in a line each.
      policy: What the nodes may do in the account.
      launcher_policy: What the launcher's own credentials must be allowed.
      cost: A sentence.
    """

    requests: tuple[dict[str, Any], ...]
    order: tuple[str, ...]
    policy: dict[str, Any]
    launcher_policy: dict[str, Any]
    cost: str


@dataclass(frozen=True)
class ClusterPlan:
    """Machines of one job. Example: provider "local", node_count 1, cpu_count 2, object_store_bytes 268435456.

    Devices are counted over all nodes that work; 0: that shows only there. `purchase` None: nothing is bought.
    """

    provider: str
    node_count: int
    cpu_count: int
    object_store_bytes: int
    gpu_count: int = 0
    purchase: Purchase | None = None

    def __str__(self) -> str:
        parts = [self.provider]
        if self.provider != "local":
            parts.append(f"{self.node_count} node{'' if self.node_count == 1 else 's'}")
        if self.cpu_count:
            parts.append(f"{self.cpu_count} CPU cores")
        if self.gpu_count:
            parts.append(f"{self.gpu_count} GPUs")
        return ", ".join(parts) + (f"; {self.purchase.cost}" if self.purchase else "")


def tell(text: str) -> None:
    """Says what happens to machines; on standard error, because standard output may be one JSON document."""
    print(text, file=sys.stderr, flush=True)


class Phase(Enum):
    """Where a cluster stands."""

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"


@dataclass(frozen=True)
class Observation:
    """A cluster as it is. Devices are counted over all nodes that work. `cost_usd`: so far."""

    phase: Phase
    cpu_count: int = 0
    gpu_count: int = 0
    node_count: int = 0
    cost_usd: float = 0.0


class Provider(Protocol):
    """Makes a cluster that this process is connected to as a Ray driver."""

    def plan(self, job: job_pb2.JobConfig) -> ClusterPlan:
        """Works out the machines of a resolved job; touches nothing. Raises UserError for what cannot work."""

    def apply(self, plan: ClusterPlan) -> None:
        """Makes it so. Applied again: nothing changes."""

    def observe(self) -> Observation:
        """What is there now."""

    def release(self) -> None:
        """Gives everything back. Released again: nothing changes."""
