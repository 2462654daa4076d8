"""A Ray for engines, where the ranks belong to none: under torchrun, or alone. Imports no Ray."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator

from finecut.proto.run import ray_session

# Samples are small, and weights do not go through Ray.
_OBJECT_STORE_BYTES = 256 * 1024 * 1024


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Rank 0 starts one, private to it, unless this process has to do with Ray already: then it is an actor of one.

    Comes before anything imports Ray, which reads its environment then.
    """
    if "ray" in sys.modules or int(os.environ.get("RANK", "0")):
        yield
        return
    folder = ray_session.make_folder()
    os.environ.update(ray_session.environment(ray_session.write_token(folder)))
    import ray

    ray.init(**ray_session.arguments(folder, len(os.sched_getaffinity(0)), _OBJECT_STORE_BYTES))
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
