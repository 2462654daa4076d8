"""This machine: Ray on the loopback interface, for as long as the launcher lives."""

import os

from finecut.launcher.providers.provider import ClusterPlan, Observation, Phase
from finecut.launcher.ray_cluster import RayCluster
from finecut.proto import job_pb2
from finecut.proto.config import ConfigError, Problem
from finecut.proto.run import RunFolder

# Ray's default is 30% of memory. Stages exchange files, not objects, so little is enough, also on 6 GiB.
_OBJECT_STORE_BYTES = 256 * 1024 * 1024


class LocalProvider:
    """One node, this one."""

    def __init__(self, folder: RunFolder) -> None:
        self._cpu_count = len(os.sched_getaffinity(0))  # what this process may use, which may be less than there is
        self._cluster = RayCluster(folder.root / "logs" / "ray")

    def plan(self, job: job_pb2.JobConfig) -> ClusterPlan:
        for field in ("node_groups", "network", "max_cost_usd"):
            if any(name.name == field for name, _ in job.cluster.ListFields()):
                raise ConfigError([Problem(f"cluster.{field}", "says nothing on this machine; unset it")])
        local = job.cluster.local
        cpu_count = local.cpu_count if local.HasField("cpu_count") else self._cpu_count
        return ClusterPlan("local", 1, cpu_count, _OBJECT_STORE_BYTES)

    def apply(self, plan: ClusterPlan) -> None:
        self._cluster.start(plan.cpu_count, plan.object_store_bytes)

    def observe(self) -> Observation:
        if not self._cluster.is_running:
            return Observation(Phase.ABSENT)
        resources = self._cluster.resources()
        return Observation(Phase.READY, int(resources.get("CPU", 0)), int(resources.get("GPU", 0)), node_count=1)

    def release(self) -> None:
        self._cluster.stop()
