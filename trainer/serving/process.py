"""An endpoint's process: started as nobody's child, so that neither a launcher nor Ray ends it with itself."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from finecut.proto import delivery_pb2
from finecut.proto.config import UserError
from finecut.trainer.serving.control import CONNECTION_LOST, Control

_POLL_S = 0.2
_STARTER = """
import subprocess, sys
with open(sys.argv[1], "wb") as log:
    streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
    print(subprocess.Popen(sys.argv[2:], start_new_session=True, **streams).pid)
"""
_START_S = 600.0  # with Ray and Serve, before any model; 20 s on an idle machine


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A Ray that replicas are to be in, as this process is: the address of its head, and this machine's in it."""

    address: str = ""
    host: str = ""


def start(control: Control, name: str, work: delivery_pb2.Deploy, folder: Path, cluster: Cluster) -> None:
    """Returns when it answers. Without a cluster's address it gets a Ray of its own. Raises UserError."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "name": name,
        "folder": folder,
        "host": work.listen_address,
        "port": work.port,
        "max_request_bytes": work.max_request_bytes,
        "api_key_file": work.api_key.file,
        "api_key_variable": work.api_key.environment_variable,
        "certificate": work.tls.certificate_file,
        "certificate_key": work.tls.key_file,
        "cluster": cluster.address,
        "cluster_host": cluster.host,
    }
    command = [sys.executable, "-m", "finecut.trainer.serving.gateway_main"]
    command += [f"--{flag}={value}" for flag, value in given.items()]
    log = folder / "endpoint.log"
    started = subprocess.run(
        [sys.executable, "-c", _STARTER, str(log), *command],
        env=_environment(cluster),
        stdout=subprocess.PIPE,
        check=True,
    )
    process_id, deadline = int(started.stdout), time.monotonic() + _START_S
    while time.monotonic() < deadline and is_running(process_id):
        try:
            control.status()
            return
        except CONNECTION_LOST:
            time.sleep(_POLL_S)
    said = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"])[-1]
    raise UserError(f"the endpoint's process did not start; it said: {said} (log: {log})")


def end(process_id: int) -> None:
    """Has it answer what it was asked, and waits until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process_id, signal.SIGTERM)
    while is_running(process_id):
        time.sleep(_POLL_S)


def is_running(process_id: int) -> bool:
    """Whether the process is there and has not ended."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _environment(cluster: Cluster) -> dict[str, str]:
    """A member of a cluster needs what Ray was started with here; nobody else may have it."""
    environment = {name: value for name, value in os.environ.items() if cluster.address or not name.startswith("RAY_")}
    return environment | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
