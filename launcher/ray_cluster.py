"""Ray on this machine: private, authenticated, and gone with the launcher, even after SIGKILL.

Alone it listens on loopback. As the head of a cluster it listens on the address that the nodes know, and connections
are mutually authenticated (TLS) besides Ray's token.

Ray's processes live as long as this process (see reaper.py). The folder that a killed launcher leaves in /tmp, and any
process that is still ending, the next start of the run clears away before anything else, so that two generations of
workers never write the same checkpoint.

Ray reads its environment when it is imported, so nothing in the launcher imports it before `start` has set that.
"""

import os
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from finecut.launcher import reaper
from finecut.launcher.node import ray_commands
from finecut.launcher.providers.provider import tell
from finecut.launcher.security.authority import Certificate
from finecut.proto.run import ray_session, waiting


@dataclass(frozen=True)
class Network:
    """How nodes reach the head: its address, a certificate that names it, and whom it trusts."""

    address: str
    certificate: Certificate
    trusted_pem: bytes


class RayCluster:
    """A Ray head with this process as its driver; nodes may join where it is started with a network.

    Args:
      logs: Where Ray's and the workers' logs are found: a link while the cluster runs, a folder afterwards.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._folder: Path | None = None
        self._reaper: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._folder is not None

    @property
    def token(self) -> str:
        """What admits a process to this Ray."""
        assert self._folder is not None, "Ray runs"
        return (self._folder / "token").read_text()

    def start(self, cpu_count: int, object_store_bytes: int, network: Network | None = None) -> None:
        """Starts Ray, after clearing what an earlier launcher of this run left. Started again: nothing changes."""
        if self.is_running:
            return
        clear_leftovers(self._logs)
        self._folder = ray_session.make_folder()
        assert "ray" not in sys.modules, "Ray was imported too early to see its environment"
        token = ray_session.write_token(self._folder)
        self._reaper = reaper.start(token, os.environ | {"PYTHONPATH": ray_session.python_path()})
        os.environ.update(ray_session.environment(token))
        if network is not None:
            network.certificate.write(self._folder / "tls", network.trusted_pem)
            os.environ.update(ray_commands.open_to_members(self._folder / "tls"))
        self._link_logs()
        where = {"_node_ip_address": network.address} if network else {}
        with waiting.told("Ray to start on this machine", tell):
            import ray

            ray_session.init(ray, ray_session.arguments(self._folder, cpu_count, object_store_bytes) | where, tell)

    def renew(self, network: Network) -> None:
        """Replaces this machine's certificate; processes that start from now on use it."""
        assert self._folder is not None, "Ray runs"
        network.certificate.write(self._folder / "tls", network.trusted_pem)

    def resources(self) -> dict[str, float]:
        """Totals such as {"CPU": 2.0, "GPU": 1.0}."""
        import ray

        return ray.cluster_resources()

    def stop(self) -> None:
        """Ends Ray and keeps its logs. Stopped again: nothing changes."""
        if self._folder is None:
            return
        import ray

        ray.shutdown()
        clear_leftovers(self._logs)
        if self._reaper:
            self._reaper.communicate()
        self._folder = self._reaper = None

    def _link_logs(self) -> None:
        assert self._folder is not None
        self._logs.parent.mkdir(parents=True, exist_ok=True)
        # Made before Ray starts, so that the folder is found again whenever the launcher is killed.
        self._logs.symlink_to(self._folder / ray_session.SESSIONS / "session_latest" / "logs")


def clear_leftovers(logs: Path) -> None:
    """Ends the processes and removes the folder behind the link `logs`, and puts the log files in the link's place."""
    if not logs.is_symlink():
        return
    source = Path(os.readlink(logs))
    folder = source.parents[2]
    if not folder.name.startswith(ray_session.PREFIX):
        raise ValueError(f"{logs} points to {source}, which is not Finecut's; remove the link")
    reaper.end_processes(folder / "token")
    kept = logs.with_name(f"{logs.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    if source.is_dir():
        shutil.copytree(source, kept, ignore_dangling_symlinks=True)
    shutil.rmtree(folder, ignore_errors=True)
    logs.unlink()
