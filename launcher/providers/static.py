"""Hosts that are there already, under a Ray head that runs beside the launcher.

apply    head -> each host's agent is asked to join -> all have joined -> lines are kept: a host that comes back joins
release  lines are closed: the hosts leave by themselves, also when this launcher is killed
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

from finecut.launcher.node.host_agent import Request
from finecut.launcher.providers import host_lines
from finecut.launcher.providers.host_lines import Line
from finecut.launcher.providers.membership import Membership
from finecut.launcher.providers.provider import ClusterPlan, Observation, Phase, tell
from finecut.proto import cluster_pb2, job_pb2
from finecut.proto.config import ConfigError, Problem, UserError
from finecut.proto.run import RunFolder

_log = logging.getLogger("finecut.launcher")
_OBJECT_STORE_BYTES = 256 * 1024 * 1024
_JOIN_S = 600.0
_POLL_S = 1.0
_RETRY_S = 5.0


class StaticProvider:
    """One run's hosts."""

    def __init__(
        self,
        job: job_pb2.JobConfig,
        folder: RunFolder,
        say: Callable[[str], None] = tell,
    ) -> None:
        self._static = job.cluster.static
        self._membership = Membership(folder, job.cluster.static.launcher_address, job.cluster.network)
        self._say = say
        self._lines: dict[str, Line] = {}
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="hosts", daemon=True)
        self._is_applied = False

    def plan(self, job: job_pb2.JobConfig) -> ClusterPlan:
        problems = list(_check(job.cluster))
        if problems:
            raise ConfigError(problems)
        hosts = job.cluster.static.hosts
        cpus = sum(host.cpu_count for host in hosts) if all(host.HasField("cpu_count") for host in hosts) else 0
        gpus = sum(host.gpu_count for host in hosts)
        return ClusterPlan("static", len(hosts), cpus, _OBJECT_STORE_BYTES, gpu_count=gpus)

    def apply(self, plan: ClusterPlan) -> None:
        if self._is_applied:
            return
        self._membership.start_head(plan.object_store_bytes)
        try:
            for host in self._static.hosts:
                self._connect(host)
            self._wait_for_hosts()
        except BaseException:
            self.release()
            raise
        self._is_applied = True
        self._keeper.start()

    def observe(self) -> Observation:
        if not self._is_applied:
            return Observation(Phase.ABSENT)
        total = self._membership.resources()
        alive = sum(member.is_alive for member in self._membership.members().values())
        phase = Phase.READY if alive == len(self._static.hosts) else Phase.STARTING
        return Observation(phase, int(total.get("CPU", 0)), int(total.get("GPU", 0)), node_count=alive)

    def release(self) -> None:
        self._stopping.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for line in self._lines.values():
            line.close()
        self._lines.clear()
        self._membership.stop()
        self._is_applied = False

    def _connect(self, host: cluster_pb2.Static.Host) -> None:
        peers = [other.address for other in self._static.hosts if other.address in self._lines]
        request = Request(
            host=host.address,
            secret=self._membership.secret(host.address, host.address, peers),
            cpu_count=host.cpu_count if host.HasField("cpu_count") else None,
            gpu_count=host.gpu_count if host.HasField("gpu_count") else None,
        )
        self._lines[host.address] = host_lines.open_line(self._static, host, request)

    def _wait_for_hosts(self) -> None:
        deadline = time.monotonic() + _JOIN_S
        while missing := self._missing():
            closed = [address for address in missing if not self._lines[address].is_open()]
            if closed or time.monotonic() > deadline:
                raise UserError(f"{', '.join(closed or missing)} did not join Ray; see the agent's output there")
            time.sleep(_POLL_S)

    def _missing(self) -> list[str]:
        members = self._membership.members()
        return [
            host.address
            for host in self._static.hosts
            if host.address not in members or not members[host.address].is_alive
        ]

    def _keep(self) -> None:
        """Asks hosts again whose line has ended; training waits for them or goes on with fewer ranks meanwhile."""
        while not self._stopping.wait(_RETRY_S):
            for host in self._static.hosts:
                if self._stopping.is_set() or self._lines[host.address].is_open():
                    continue
                try:
                    self._connect(host)
                    self._say(f"host {host.address} is back")
                except UserError as error:
                    _log.warning("host %s: %s", host.address, error)


def _check(cluster: cluster_pb2.Cluster) -> Iterator[Problem]:
    static = cluster.static
    if cluster.node_groups:
        yield Problem("cluster.node_groups", "says nothing on static machines; leave it empty")
    if cluster.HasField("max_cost_usd"):
        yield Problem("cluster.max_cost_usd", "says nothing on static machines, which are not bought; unset it")
    addresses = [host.address for host in static.hosts]
    for index, host in enumerate(static.hosts):
        path = f"cluster.static.hosts[{index}]"
        if addresses.index(host.address) < index:
            yield Problem(f"{path}.address", f'"{host.address}" is named twice; name each host once')
        if host.access != cluster_pb2.Static.SSH and not static.credentials:
            yield Problem(
                "cluster.static.credentials", f"is required by the agent of {host.address}; set it, or use access SSH"
            )
            return
