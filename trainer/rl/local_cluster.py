"""A Ray for engines, where the ranks belong to none: under torchrun, or alone. Imports no Ray."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from finecut.dataprep import local_ray


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Rank 0 starts one, private to it, unless this process has to do with Ray already: then it is an actor of one.

    Comes before anything imports Ray, which reads its environment then.
    """
    if "ray" in sys.modules or int(os.environ.get("RANK", "0")):
        yield
        return
    with local_ray.started():
        yield
