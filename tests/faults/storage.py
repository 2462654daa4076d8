"""Storage that is slow, or fails: "faulty:///folder" is that folder, with the faults that are set in `FAULTS`."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


@dataclasses.dataclass
class Faults:
    """What goes wrong, in this process. `writes` counts the files that were opened for writing."""

    seconds_a_file: float = 0.0
    failing_writes: int = 0  # the next so many fail
    reason: str = "No space left on device"
    writes: int = 0


FAULTS = Faults()


def reset() -> None:
    """Storage works again."""
    FAULTS.__init__()  # type: ignore[misc]


class FaultyFileSystem(LocalFileSystem):
    """The local disk with faults."""

    protocol = "faulty"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(auto_mkdir=True, **kwargs)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("faulty://"))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if "w" in mode:
            FAULTS.writes += 1
            time.sleep(FAULTS.seconds_a_file)
            if FAULTS.failing_writes > 0:
                FAULTS.failing_writes -= 1
                raise OSError(28, FAULTS.reason)
        return super()._open(path, mode, **kwargs)


def register() -> None:
    """Makes "faulty://" known to fsspec."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
