"""Rules for hosts of one's own, wherever a job names them."""

from __future__ import annotations

from collections.abc import Iterator

from finecut.proto import cluster_pb2
from finecut.proto.config import Problem


def check(static: cluster_pb2.Static, path: str) -> Iterator[Problem]:
    """Hosts that cannot be reached as they are written."""
    addresses = [host.address for host in static.hosts]
    for index, host in enumerate(static.hosts):
        if addresses.index(host.address) < index:
            yield Problem(f"{path}.hosts[{index}].address", f'"{host.address}" is named twice; name each host once')
        if host.access != cluster_pb2.Static.SSH and not static.credentials:
            yield Problem(
                f"{path}.credentials", f"is required by the agent of {host.address}; set it, or use access SSH"
            )
            return
