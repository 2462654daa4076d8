"""Secrets of nodes and the launcher's lease, as SSM parameters that the nodes' role may read."""

from __future__ import annotations

from finecut.launcher.node.secret import NodeSecret
from finecut.launcher.providers.aws.api import Api
from finecut.launcher.providers.aws.names import Names


def publish(api: Api, names: Names, instance: str, secret: NodeSecret) -> None:
    """Writes a node's secret, in place of the one before."""
    _put(api, names.node_secret(instance), secret.dump(), "SecureString")


def renew_lease(api: Api, names: Names, value: str) -> None:
    """Says that the launcher lives: nodes look for a value that changes, so clocks need not agree."""
    _put(api, names.lease, value, "String")


def _put(api: Api, name: str, value: str, kind: str) -> None:
    api.call("ssm", "PutParameter", Name=name, Value=value, Type=kind, Overwrite=True)
