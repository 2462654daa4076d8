"""Tensors of a checkpoint, by torch.distributed.checkpoint: a file or more a rank, hashed while they are written."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from typing import Any, cast

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystemBase

from finecut.trainer.checkpoint.location import Location
from finecut.trainer.checkpoint.manifest import FileDigest

_TEMPORARY = ".tmp"


def save(
    tensors: dict[str, Any], location: Location, folder: str, group: dist.ProcessGroup | None, num_files: int = 1
) -> dict[str, FileDigest]:
    """Writes this rank's shards below `folder`. Collective over `group`.

    Args:
      num_files: that the shards are spread over, each written and hashed by a thread of its own.

    Returns the digests of the files that this rank wrote, by path relative to `location`. What fails on one rank raises
    CheckpointException on all.
    """
    hashing = _Files(location)
    dcp.save(tensors, storage_writer=_Writer(hashing, folder, num_files), process_group=group)
    return hashing.digests


def load(tensors: dict[str, Any], location: Location, folder: str, group: dist.ProcessGroup | None) -> None:
    """Fills `tensors` in place from `folder`, whatever mesh wrote it. Collective over `group`."""
    dcp.load(tensors, storage_reader=_Reader(_Files(location), folder), process_group=group)


class _Writer(FileSystemWriter):
    def __init__(self, files: _Files, folder: str, num_files: int) -> None:
        # Files are durable when they are closed (Location.create); torch would sync the whole machine for some.
        super().__init__(folder, sync_files=False, thread_count=num_files)
        self.fs = files
        self.path = folder


class _Reader(FileSystemReader):
    def __init__(self, files: _Files, folder: str) -> None:
        super().__init__(folder)
        self.fs = files
        self.path = folder


class _Files(FileSystemBase):
    """A location as torch sees file systems; remembers the digests of what it wrote."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self.digests: dict[str, FileDigest] = {}

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        # torch writes its metadata under a temporary name. Here nothing counts before the manifest, so there is none.
        name = os.fspath(path).removesuffix(_TEMPORARY)
        if mode == "rb":
            with self._location.open(name) as file:
                yield cast(io.IOBase, file)
            return
        with self._location.create(name) as file:
            stream = HashingStream(cast(io.IOBase, file))
            yield stream
        self.digests[name] = stream.digest()

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return f"{os.fspath(path)}/{suffix}"

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return os.fspath(path)

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        assert os.fspath(path) == f"{os.fspath(new_path)}{_TEMPORARY}", "torch renames nothing but its metadata"

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Nothing: folders come with their files."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return False  # the folder was emptied before

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        self._location.remove_file(os.fspath(path))


class HashingStream(io.RawIOBase):
    """Passes writes on and hashes them. What memory held is hashed, so damage on the way to the disk shows."""

    def __init__(self, file: io.IOBase) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._file.write(view)  # type: ignore[attr-defined]
        self._sha256.update(view)
        self._size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._size

    def digest(self) -> FileDigest:
        """Of all that was written."""
        return FileDigest(self._size, self._sha256.hexdigest())
