"""A Ray for the data preparation program when it runs alone; under the launcher there is one already."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Only numbers of segments go through the object store; documents go through files.
_OBJECT_STORE_BYTES = 128 << 20
_LONGEST_PLACE = 22


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def started() -> Iterator[None]:
    """Ray on this machine's cores: private, authenticated, on loopback. Ray reads its environment when it is imported.

    Its processes end with this one; after a SIGKILL some live on for up to a minute, idle.
    """
    # The folder is private (0700), unlike the one that Ray makes in it. Paths of Unix sockets in that end at 107 bytes.
    place = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="finecut-", dir=place if len(place) <= _LONGEST_PLACE else "/tmp"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ.update(_environment(token))
    import ray

    ray.init(
        address="local",
        num_cpus=num_cores(),
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=str(folder / "ray"),
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _environment(token: Path) -> dict[str, str]:
    """As the launcher starts its Ray: see launcher/ray_cluster.py for the reasons."""
    root = str(Path(__file__).parents[2])
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root]
    return {
        "PYTHONPATH": os.pathsep.join([root, *inherited]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_worker_niceness": "0",
        "RAY_ENABLE_AUTO_CONNECT": "0",
        # Ray's own 30 s are not enough on a machine that others keep busy.
        "RAY_raylet_start_wait_time_s": "180",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
