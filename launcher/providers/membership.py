"""The Ray side of a cluster: its head in this process, its own authority, who has joined, and who is to leave."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from finecut.launcher.node import drain
from finecut.launcher.node.secret import NodeSecret
from finecut.launcher.ray_cluster import Network, RayCluster
from finecut.launcher.security.authority import Authority
from finecut.proto import cluster_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder

# Ray reads certificates when it starts and never again, so they must outlive a run; each start mints new ones.
_LIFETIME = datetime.timedelta(days=90)


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
      expected: What nodes are to measure before they join.
    """

    def __init__(self, folder: RunFolder, address: str, expected: cluster_pb2.NetworkExpectation) -> None:
        self._folder = folder
        self._address = address
        self._expected = expected
        self._cluster = RayCluster(folder.root / "logs" / "ray")
        self._authority: Authority | None = None

    def start_head(self, object_store_bytes: int) -> None:
        """Starts Ray without cores of its own: work runs on the nodes. Started again: nothing changes."""
        if self._cluster.is_running:
            return
        place = self._folder.root / "authority"
        self._authority = Authority.load(place) if (place / "authority.pem").exists() else Authority.create(place)
        address = self._address or _own_address()
        certificate = self._authority.mint("head", [address], _LIFETIME)
        self._cluster.start(0, object_store_bytes, Network(address, certificate, self._authority.trusted_pem))

    def secret(self, instance: str, address: str, peers: Sequence[str] = ()) -> NodeSecret:
        """What admits one node. Its certificate is minted anew each time."""
        import ray

        assert self._authority is not None, "the head runs"
        certificate = self._authority.mint(instance, [address], _LIFETIME)
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

    def members(self) -> dict[str, Member]:
        """By instance. Of an instance that joined twice the living member counts."""
        import ray

        draining = ray._private.state.state.get_draining_nodes()
        found: dict[str, Member] = {}
        for node in ray.nodes():
            instance = (node.get("Labels") or {}).get(drain.INSTANCE_LABEL)
            if instance and (node["Alive"] or instance not in found):
                found[instance] = Member(node["Alive"], node["NodeID"] in draining)
        return found

    def resources(self) -> dict[str, float]:
        """Totals such as {"CPU": 2.0, "GPU": 1.0}."""
        return self._cluster.resources()

    def drain(self, instance: str, reason: str, seconds: float) -> bool:
        """Has training save and leave a node."""
        import ray

        return drain.drain(ray.get_runtime_context().gcs_address, instance, reason, seconds)

    def stop(self) -> None:
        """Ends the head; nodes look for a new one until their dead-man timer runs out."""
        self._cluster.stop()


def _own_address() -> str:
    """The address of this machine from which it reaches others. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("169.254.169.254", 9))
        except OSError:
            raise UserError("launcher_address: this machine has no network; set it in the job's cluster") from None
        return str(probe.getsockname()[0])
