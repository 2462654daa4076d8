"""What a node is told once it is there: where Ray's head is, what admits it, and what is expected of its network.

A node's certificate names the node's own address, so it cannot be part of the request that buys the node.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class NodeSecret:
    """PEM parts are text. `repr` shows nothing that is secret.

    Attributes:
      head: Address and port of Ray's head.
      address: The node's own, which its certificate names.
      peers: Addresses of nodes to which the network is measured before this one joins.
      min_bandwidth_gbps: See NetworkExpectation; None: not expected.
      max_latency_us: The same.
    """

    head: str
    address: str
    token: str
    certificate: str
    key: str
    authority: str
    peers: tuple[str, ...] = ()
    min_bandwidth_gbps: float | None = None
    max_latency_us: float | None = None

    def __repr__(self) -> str:
        return f"NodeSecret(head={self.head!r}, address={self.address!r})"

    @classmethod
    def parse(cls, text: str) -> NodeSecret:
        fields = json.loads(text)
        return cls(**fields | {"peers": tuple(fields.get("peers", ()))})

    def dump(self) -> str:
        """As `parse` reads it: one line."""
        return json.dumps(asdict(self))

    def admits_as(self, other: NodeSecret | None) -> bool:
        """Whether both lead to the same place in the same cluster; a certificate that is only newer does not count."""
        return other is not None and (self.head, self.address, self.token) == (other.head, other.address, other.token)
