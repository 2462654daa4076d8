"""Ray on this machine: private, authenticated, on loopback, and gone with the launcher, even after SIGKILL.

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
import tempfile
import time
from pathlib import Path

from finecut.launcher import reaper

_PREFIX = "finecut-"
_SESSIONS = "ray"  # a folder of its own below the private one, because Ray opens its temporary folder to everybody
# Unix socket paths end at 107 bytes, and what we and Ray append takes up to 85 of them: too much for a long TMPDIR.
_LONGEST_BASE = 107 - 85


class RayCluster:
    """A one-node Ray cluster with this process as its driver.

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

    def start(self, cpu_count: int, object_store_bytes: int) -> None:
        """Starts Ray, after clearing what an earlier launcher of this run left. Started again: nothing changes."""
        if self.is_running:
            return
        clear_leftovers(self._logs)
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_short_temporary_folder()))
        assert "ray" not in sys.modules, "Ray was imported too early to see its environment"
        token = _write_token(self._folder)
        self._reaper = reaper.start(token, os.environ | {"PYTHONPATH": _python_path()})
        os.environ.update(_environment(token))
        self._link_logs()
        import ray

        ray.init(
            address="local",  # never one that happens to run here
            num_cpus=cpu_count,
            object_store_memory=object_store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=str(self._folder / _SESSIONS),
        )

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
        self._logs.symlink_to(self._folder / _SESSIONS / "session_latest" / "logs")


def _environment(token: Path) -> dict[str, str]:
    """What Ray's processes, and this one as their driver, are started with."""
    return {
        "PYTHONPATH": _python_path(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),  # the path, never the token, which others could read in /proc
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        # Workers do the work; Ray would have them yield to every other program (nice 15).
        "RAY_worker_niceness": "0",
        # After a shutdown, what a stage's thread still calls must fail, not start another Ray.
        "RAY_ENABLE_AUTO_CONNECT": "0",
        # Despite its name, this decides on every system whether Ray's ports are bound to loopback (0) or everywhere.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # CPU tasks keep seeing GPUs as they are; this is Ray's coming default and spares users a warning.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def _python_path() -> str:
    root = str(Path(__file__).parents[2])  # the folder that holds finecut/, in Bazel's runfiles and in a bundle
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root]
    return os.pathsep.join([root, *inherited])


def _write_token(folder: Path) -> Path:
    path = folder / "token"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_hex(32).encode())
    finally:
        os.close(descriptor)
    return path


def _short_temporary_folder() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) <= _LONGEST_BASE else "/tmp"


def clear_leftovers(logs: Path) -> None:
    """Ends the processes and removes the folder behind the link `logs`, and puts the log files in the link's place."""
    if not logs.is_symlink():
        return
    source = Path(os.readlink(logs))
    folder = source.parents[2]
    if not folder.name.startswith(_PREFIX):
        raise ValueError(f"{logs} points to {source}, which is not Finecut's; remove the link")
    reaper.end_processes(folder / "token")
    kept = logs.with_name(f"{logs.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    if source.is_dir():
        shutil.copytree(source, kept, ignore_dangling_symlinks=True)
    shutil.rmtree(folder, ignore_errors=True)
    logs.unlink()
