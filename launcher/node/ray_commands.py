"""Ray's own commands, and the environment in which members of a cluster run them. Ray is not imported here."""

import json
import subprocess
import sys
from pathlib import Path

from finecut.launcher.node.drain import INSTANCE_LABEL
from finecut.proto.run import node_roles, ray_session

_LOG = "ray-node.log"
_RAY = (sys.executable, "-m", "ray.scripts.scripts")


def open_to_members(tls: Path) -> dict[str, str]:
    """Environment for mutual TLS with the files that Certificate.write left, on all of a machine's addresses."""
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(tls / "certificate.pem"),
        "RAY_TLS_SERVER_KEY": str(tls / "key.pem"),
        "RAY_TLS_CA_CERT": str(tls / "authority.pem"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # see ray_session.environment
    }


def start_node(
    head: str,
    address: str,
    instance: str,
    cpus: int,
    gpus: int,
    role: str,
    folder: Path,
    environment: dict[str, str],
) -> "subprocess.Popen[bytes]":
    """Starts a Ray node that joins `head` and lives as long as the returned process; its files are in `folder`."""
    command = [
        *_RAY,
        "start",
        "--block",
        f"--address={head}",
        f"--node-ip-address={address}",
        f"--num-cpus={cpus}",
        f"--num-gpus={gpus}",
        f"--labels={INSTANCE_LABEL}={instance}",
        f"--resources={json.dumps(node_roles.offered(role))}",
        "--object-store-memory=268435456",  # stages exchange files, not objects
        f"--temp-dir={folder / ray_session.SESSIONS}",
    ]
    log = (folder / _LOG).open("wb")
    try:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    finally:
        log.close()


def has_started(folder: Path) -> bool:
    """Whether the node that was started last in `folder` has got as far as running."""
    try:
        return b"Ray runtime started" in (folder / _LOG).read_bytes()
    except FileNotFoundError:
        return False
