"""What a node is told once it is there: where Ray's head is, and what admits it. Kept as an SSM SecureString.

A node's certificate names the node's own address, so it cannot be part of the request that buys the node.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from finecut.launcher.providers.aws.api import Api
from finecut.launcher.providers.aws.names import Names


@dataclass(frozen=True)
class NodeSecret:
    """All PEM parts are text. `repr` shows none of them."""

    head: str  # address:port of Ray's head
    address: str  # the node's own, which its certificate names
    token: str
    certificate: str
    key: str
    authority: str

    def __repr__(self) -> str:
        return f"NodeSecret(head={self.head!r}, address={self.address!r})"

    @classmethod
    def parse(cls, text: str) -> NodeSecret:
        return cls(**json.loads(text))


def publish(api: Api, names: Names, instance: str, secret: NodeSecret) -> None:
    """Writes a node's secret, in place of the one before."""
    _put(api, names.node_secret(instance), json.dumps(asdict(secret)), "SecureString")


def renew_lease(api: Api, names: Names, value: str) -> None:
    """Says that the launcher lives: nodes look for a value that changes, so clocks need not agree."""
    _put(api, names.lease, value, "String")


def _put(api: Api, name: str, value: str, kind: str) -> None:
    api.call("ssm", "PutParameter", Name=name, Value=value, Type=kind, Overwrite=True)
