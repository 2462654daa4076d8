"""A Ray for engines, where the ranks belong to none: under torchrun, or alone. Imports no Ray before it is needed."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from finecut.proto.run import ray_session

# Samples are small, and weights do not go through Ray.
_OBJECT_STORE_BYTES = 256 * 1024 * 1024


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Rank 0 starts one, private to it, unless it belongs to one already.

    Comes before anything imports Ray, which reads its environment then.
    """
    if _is_initialized() or int(os.environ.get("RANK", "0")):
        yield
        return
    folder = _folder()
    import ray

    ray_session.init(ray, ray_session.arguments(folder, len(os.sched_getaffinity(0)), _OBJECT_STORE_BYTES))
    try:
        yield
    finally:
        ray.shutdown()


def _is_initialized() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@functools.cache
def _folder() -> Path:
    """One for the life of this process: Ray reads its token once."""
    folder = ray_session.make_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.update(ray_session.environment(ray_session.write_token(folder)))
    return folder
