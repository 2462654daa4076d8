"""What every Ray that Finecut starts on one machine has in common: private, authenticated, on loopback.

Ray reads its environment when it is imported, so whoever starts it sets `environment` first. Ray itself is not imported
here.
"""

import logging
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = "finecut-"
SESSIONS = "ray"  # a folder of its own below the private one, because Ray opens its temporary folder to everybody
# Unix socket paths end at 107 bytes, and what we and Ray append takes up to 85 of them: too much for a long TMPDIR.
_LONGEST_BASE = 107 - 85
_LOG = logging.getLogger(__name__)


def make_folder() -> Path:
    """A private folder (0700) with a path that is short enough for sockets; whoever asks for it removes it."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=base if len(base) <= _LONGEST_BASE else "/tmp"))


def write_token(folder: Path) -> Path:
    """Writes a new token that only this user can read."""
    path = folder / "token"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_hex(32).encode())
    finally:
        os.close(descriptor)
    return path


def environment(token: Path) -> dict[str, str]:
    """What Ray's processes, and this one as their driver, are started with."""
    return {
        "PYTHONPATH": python_path(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),  # the path, never the token, which others could read in /proc
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        # Workers do the work; Ray would have them yield to every other program (nice 15).
        "RAY_worker_niceness": "0",
        # After a shutdown, what a stage's thread still calls must fail, not start another Ray.
        "RAY_ENABLE_AUTO_CONNECT": "0",
        # Ray's own 30 s are not enough on a machine that others keep busy.
        "RAY_raylet_start_wait_time_s": "180",
        "RAY_gcs_server_port_wait_time_s": "180",
        # Despite its name, this decides on every system whether Ray's ports are bound to loopback (0) or everywhere.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # CPU tasks keep seeing GPUs as they are; this is Ray's coming default and spares users a warning.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def arguments(folder: Path, cpu_count: int, object_store_bytes: int) -> dict[str, Any]:
    """Of `ray.init`, for a Ray in the folder that `make_folder` gave."""
    return {
        "address": "local",  # never one that happens to run here
        "num_cpus": cpu_count,
        "object_store_memory": object_store_bytes,
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": "error",
        "_temp_dir": str(folder / SESSIONS),
    }


def init(ray: ModuleType, arguments: dict[str, Any], say: Callable[[str], None] = _LOG.info) -> None:
    """ray.init. Ray gives its daemons little time to start, which a busy one may need several times: `say` tells."""
    for tries_left in range(7, -1, -1):
        try:
            ray.init(**arguments)
            return
        except Exception as error:  # Ray raises the class itself
            ray.shutdown()
            if not tries_left or "timed out during startup" not in str(error):
                raise
            say(f"Ray's daemons did not start in the time that Ray gives them; {tries_left} more tries")


def python_path() -> str:
    """What lets a process import this program as this one does, before all that it inherits."""
    root = str(Path(__file__).parents[3])  # the folder that holds finecut/, in Bazel's runfiles and in a bundle
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root]
    return os.pathsep.join([root, *inherited])
