"""A Ray for the data preparation program when it runs alone; under the launcher there is one already."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from finecut.proto.run import ray_session

# Only numbers of segments go through the object store; documents go through files.
_OBJECT_STORE_BYTES = 128 << 20


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextmanager
def started() -> Iterator[None]:
    """Ray on this machine's cores. Its processes end with this one; after a SIGKILL some live on for up to a minute."""
    folder = ray_session.make_folder()
    os.environ.update(ray_session.environment(ray_session.write_token(folder)))
    import ray

    ray.init(**ray_session.arguments(folder, num_cores(), _OBJECT_STORE_BYTES))
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
