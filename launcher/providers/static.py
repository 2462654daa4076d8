"""Hosts that are there already, under a Ray head that runs beside the launcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from finecut.launcher.providers import host_rules
from finecut.launcher.providers.hosts import Hosts
from finecut.launcher.providers.membership import Membership
from finecut.launcher.providers.provider import ClusterPlan, Observation, Phase, tell
from finecut.launcher.providers.renewal import Renewal
from finecut.launcher.reconcile.store import FILE, Store
from finecut.proto import cluster_pb2, job_pb2
from finecut.proto.config import ConfigError, Problem
from finecut.proto.run import RunFolder

_OBJECT_STORE_BYTES = 256 * 1024 * 1024


class StaticProvider:
    """One run's hosts."""

    def __init__(
        self,
        job: job_pb2.JobConfig,
        folder: RunFolder,
        say: Callable[[str], None] = tell,
    ) -> None:
        self._static = job.cluster.static
        self._folder = folder
        self._membership = Membership(folder, job.cluster.static.launcher_address, job.cluster)
        self._say = say
        self._hosts: Hosts | None = None

    def plan(self, job: job_pb2.JobConfig) -> ClusterPlan:
        problems = list(_check(job.cluster))
        if problems:
            raise ConfigError(problems)
        hosts = job.cluster.static.hosts
        cpus = sum(host.cpu_count for host in hosts) if all(host.HasField("cpu_count") for host in hosts) else 0
        gpus = sum(host.gpu_count for host in hosts)
        return ClusterPlan("static", len(hosts), cpus, _OBJECT_STORE_BYTES, gpu_count=gpus)

    def apply(self, plan: ClusterPlan) -> None:
        if self._hosts is not None:
            return
        self._membership.start_head(plan.object_store_bytes)
        renewal = Renewal(self._membership, lambda host: hosts.renew(host), self._say)
        hosts = Hosts(self._static, self._membership, Store(self._folder.root / FILE), self._say, renewal.round)
        self._hosts = hosts
        try:
            hosts.join()
        except BaseException:
            self.release()
            raise

    def observe(self) -> Observation:
        if self._hosts is None:
            return Observation(Phase.ABSENT)
        total = self._membership.resources()
        alive = self._hosts.num_alive
        phase = Phase.READY if alive == len(self._static.hosts) else Phase.STARTING
        return Observation(phase, int(total.get("CPU", 0)), int(total.get("GPU", 0)), node_count=alive)

    def release(self) -> None:
        if self._hosts is not None:
            self._hosts.leave()
            self._hosts = None
        self._membership.stop()


def _check(cluster: cluster_pb2.Cluster) -> Iterator[Problem]:
    if cluster.node_groups:
        yield Problem("cluster.node_groups", "says nothing on static machines; leave it empty")
    if cluster.HasField("max_cost_usd"):
        yield Problem("cluster.max_cost_usd", "says nothing on static machines, which are not bought; unset it")
    yield from host_rules.check(cluster.static, "cluster.static")
