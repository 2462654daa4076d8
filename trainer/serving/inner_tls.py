"""Encryption between a gateway and the replicas on other nodes, by the certificates with which those joined Ray."""

from __future__ import annotations

import dataclasses
import os
import ssl


@dataclasses.dataclass(frozen=True)
class NodeTls:
    """Files in PEM: this node's certificate, which names its address, its key, and whom all nodes trust."""

    certificate: str
    key: str
    authority: str

    def client_context(self) -> ssl.SSLContext:
        """For connections to replicas."""
        return ssl.create_default_context(cafile=self.authority)

    def server_flags(self) -> list[str]:
        """For a replica's server."""
        return ["--ssl-certfile", self.certificate, "--ssl-keyfile", self.key]


def of_this_node() -> NodeTls | None:
    """None where Ray stays on one machine and has no certificates."""
    if os.environ.get("RAY_USE_TLS") != "1":
        return None
    return NodeTls(*(os.environ[f"RAY_TLS_{part}"] for part in ("SERVER_CERT", "SERVER_KEY", "CA_CERT")))
