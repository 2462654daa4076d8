"""The interface of providers: plan is pure, apply and release may be repeated, observe looks."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from finecut.proto import job_pb2


@dataclass(frozen=True)
class ClusterPlan:
    """Machines of one job. Example: provider "local", node_count 1, cpu_count 2, object_store_bytes 268435456."""

    provider: str
    node_count: int
    cpu_count: int
    object_store_bytes: int


class Phase(Enum):
    """Where a cluster stands."""

    ABSENT = "absent"
    READY = "ready"


@dataclass(frozen=True)
class Observation:
    """A cluster as it is. Devices are counted over all nodes."""

    phase: Phase
    cpu_count: int = 0
    gpu_count: int = 0


class Provider(Protocol):
    """Makes a cluster that this process is connected to as a Ray driver."""

    def plan(self, job: job_pb2.JobConfig) -> ClusterPlan:
        """Works out the machines of a resolved job; touches nothing."""

    def apply(self, plan: ClusterPlan) -> None:
        """Makes it so. Applied again: nothing changes."""

    def observe(self) -> Observation:
        """What is there now."""

    def release(self) -> None:
        """Gives everything back. Released again: nothing changes."""
