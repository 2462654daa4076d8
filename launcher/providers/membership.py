"""The Ray side of a cluster: its head in this process, its own authority, who has joined, and who is to leave."""

from __future__ import annotations

import datetime
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finecut.launcher.node import drain
from finecut.launcher.node.secret import NodeSecret
from finecut.launcher.providers import demand
from finecut.launcher.ray_cluster import Network, RayCluster
from finecut.launcher.security.authority import Authority, Certificate, is_due
from finecut.proto import cluster_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder

_HEAD = "head"
# Of runs that an earlier version has stored without them.
_LIFETIME = datetime.timedelta(days=90)
_RENEWAL = 0.5
# Of the head's certificate: what is left of it is for a checkpoint.
_LAST_PART = 0.05


@dataclass(frozen=True)
class Member:
    """A Ray node that has joined, alive or dead by now."""

    is_alive: bool
    is_draining: bool


class Membership:
    """One run's head.

    Args:
      folder: The run; the authority is kept in it.
      address: Where nodes reach this machine; "": the address that it uses itself.
      cluster: What nodes are to measure before they join, and how long certificates live.
    """

    def __init__(self, folder: RunFolder, address: str, cluster: cluster_pb2.Cluster) -> None:
        self._folder = folder
        self._address = address
        self._expected = cluster.network
        self._lifetime = cluster.certificate_lifetime.ToTimedelta() or _LIFETIME
        self._renew_after = (cluster.certificate_renewal or _RENEWAL) * self._lifetime
        self._cluster = RayCluster(folder.root / "logs" / "ray")
        self._authority: Authority | None = None
        self._minted: dict[str, float] = {}  # machine -> when it got its newest certificate
        self._head_started = 0.0

    def start_head(self, object_store_bytes: int) -> None:
        """Starts Ray without cores of its own: work runs on the nodes. Started again: nothing changes."""
        if self._cluster.is_running:
            return
        place = self._folder.root / "authority"
        self._authority = _authority(place)
        self._address = self._address or _own_address()
        self._head_started = time.time()
        self._cluster.start(0, object_store_bytes, self._network())

    def secret(self, instance: str, address: str, peers: Sequence[str] = ()) -> NodeSecret:
        """What admits one node. Its certificate is minted anew each time."""
        import ray

        assert self._authority is not None, "the head runs"
        certificate = self._mint(instance, address)
        return NodeSecret(
            head=ray.get_runtime_context().gcs_address,
            address=address,
            token=self._cluster.token,
            certificate=certificate.cert_pem.decode(),
            key=certificate.key_pem.decode(),
            authority=self._authority.trusted_pem.decode(),
            peers=tuple(peers),
            min_bandwidth_gbps=self._expected.min_bandwidth_gbps or None,
            max_latency_us=self._expected.max_latency_us or None,
        )

    def due(self) -> list[str]:
        """Nodes whose newest certificate is past its renewal; `secret` mints another."""
        return [name for name in self._minted if name != _HEAD and self._is_due(name)]

    def renew_head(self) -> None:
        """Replaces the files of this machine's certificate once they are past their renewal."""
        if self._is_due(_HEAD):
            self._cluster.renew(self._network())

    def is_ending(self) -> bool:
        """Whether the certificates that living processes hold end soon. The head's is the oldest of them."""
        return time.time() > self._head_started + (1 - _LAST_PART) * self._lifetime.total_seconds()

    def forget(self, instance: str) -> None:
        """A node has gone: it gets no more certificates."""
        self._minted.pop(instance, None)

    def _network(self) -> Network:
        assert self._authority is not None, "the head runs"
        return Network(self._address, self._mint(_HEAD, self._address), self._authority.trusted_pem)

    def _mint(self, name: str, address: str) -> Certificate:
        assert self._authority is not None, "the head runs"
        self._minted[name] = time.time()
        return self._authority.mint(name, [address], self._lifetime)

    def _is_due(self, name: str) -> bool:
        return time.time() > self._minted[name] + self._renew_after.total_seconds()

    def members(self) -> dict[str, Member]:
        """By instance. Of an instance that joined twice the living member counts."""
        import ray

        from finecut.proto.run import ray_nodes

        draining = ray_nodes.draining()
        found: dict[str, Member] = {}
        for node in ray.nodes():
            instance = (node.get("Labels") or {}).get(drain.INSTANCE_LABEL)
            if instance and (node["Alive"] or instance not in found):
                found[instance] = Member(node["Alive"], node["NodeID"] in draining)
        return found

    def resources(self) -> dict[str, float]:
        """Totals such as {"CPU": 2.0, "GPU": 1.0}."""
        return self._cluster.resources()

    def idle(self) -> frozenset[str]:
        """Instances that do nothing."""
        return demand.idle_instances()

    def waiting(self, role: str, cpus: int, gpus: int) -> int:
        """Nodes of so many cores and GPUs that work of a role waits for."""
        return demand.waiting_nodes(role, cpus, gpus)

    def drain(self, instance: str, reason: str, seconds: float, is_idle: bool = False) -> bool:
        """Has training save and leave a node; `is_idle`: only if it has no work."""
        import ray

        return drain.drain(ray.get_runtime_context().gcs_address, instance, reason, seconds, is_idle=is_idle)

    def stop(self) -> None:
        """Ends the head; nodes look for a new one until their dead-man timer runs out."""
        self._cluster.stop()


def _authority(place: Path) -> Authority:
    """The run's own. It changes its key only here, where every process of the cluster is about to start anew."""
    if not (place / "authority.pem").exists():
        return Authority.create(place)
    found = Authority.load(place)
    return found.rotate() if is_due(found.trusted_pem) else found


def _own_address() -> str:
    """The address of this machine from which it reaches others. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("169.254.169.254", 9))
        except OSError:
            raise UserError("launcher_address: this machine has no network; set it in the job's cluster") from None
        return str(probe.getsockname()[0])
