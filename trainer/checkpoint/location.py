"""Where checkpoints are kept: a folder that every rank sees, or an object store behind a URL such as "s3://bucket/runs".

Neither is trusted to write a file in one piece: a checkpoint counts by its manifest, which is written last.
"""

from __future__ import annotations

import abc
import base64
import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import fsspec

from finecut.proto.run import files
from finecut.trainer.keeping import EncryptionConfig

# One range request for this much: restoring reads tensors one after another. Origin: S3's advice of 8 to 16 MiB.
_READ_BYTES = 16 << 20


class Location(abc.ABC):
    """Files by relative path with forward slashes. Methods raise OSError, or what a store's client raises."""

    @abc.abstractmethod
    def create(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A new file, with its folders; its content is durable when the context ends."""

    @abc.abstractmethod
    def open(self, path: str) -> IO[bytes]:
        """An existing file, from its beginning; seekable. Raises FileNotFoundError."""

    @abc.abstractmethod
    def write_last(self, path: str, text: str) -> None:
        """Makes what lies beside and below `path` durable, then writes it: whole, or not at all."""

    @abc.abstractmethod
    def folders(self) -> list[str]:
        """Names of the folders at the top."""

    @abc.abstractmethod
    def size(self, path: str) -> int | None:
        """Bytes of a file; None: it is not there."""

    @abc.abstractmethod
    def remove_file(self, path: str) -> None:
        """Deletes a file, durably, where it is there."""

    @abc.abstractmethod
    def remove_folder(self, path: str) -> None:
        """Deletes a folder and all below it, where it is there."""

    def read_text(self, path: str) -> str:
        """A small file, as UTF-8. Raises FileNotFoundError."""
        with self.open(path) as file:
            return file.read().decode()


def at(place: str, encryption: EncryptionConfig | None = None) -> Location:
    """The location that a path or a URL names. `encryption` holds for objects of "s3://"."""
    return ObjectStore(place, encryption) if "://" in place else Folder(Path(place))


class Folder(Location):
    """A folder on a file system, local or shared."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __str__(self) -> str:
        return str(self._root)

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def open(self, path: str) -> IO[bytes]:
        return (self._root / path).open("rb")

    def write_last(self, path: str, text: str) -> None:
        target = self._root / path
        for folder in [*(child for child in target.parent.rglob("*") if child.is_dir()), target.parent]:
            files.sync_folder(folder)
        files.write_atomically(target, text)
        files.sync_folder(target.parent.parent)

    def folders(self) -> list[str]:
        return [path.name for path in self._root.iterdir() if path.is_dir()] if self._root.is_dir() else []

    def size(self, path: str) -> int | None:
        target = self._root / path
        return target.stat().st_size if target.is_file() else None

    def remove_file(self, path: str) -> None:
        target = self._root / path
        target.unlink(missing_ok=True)
        if target.parent.is_dir():
            files.sync_folder(target.parent)

    def remove_folder(self, path: str) -> None:
        shutil.rmtree(self._root / path, ignore_errors=True)


class ObjectStore(Location):
    """A prefix in a store that fsspec knows; an object appears there whole or not at all."""

    def __init__(self, url: str, encryption: EncryptionConfig | None) -> None:
        # Listings and clients are not shared or kept: another process writes to the same prefix.
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if encryption:
            options["s3_additional_kwargs"] = encryption_headers(encryption)
        self._url = url.rstrip("/")
        self._store, self._root = fsspec.core.url_to_fs(self._url, **options)

    def __str__(self) -> str:
        return self._url

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[IO[bytes]]:
        with self._store.open(self._path(path), "wb") as file:  # object stores have no folders to make
            yield file

    def open(self, path: str) -> IO[bytes]:
        return cast(IO[bytes], self._store.open(self._path(path), "rb", block_size=_READ_BYTES))

    def write_last(self, path: str, text: str) -> None:
        with self.create(path) as file:
            file.write(text.encode())

    def folders(self) -> list[str]:
        try:
            entries = self._store.ls(self._root, detail=True)
        except FileNotFoundError:
            return []
        return [PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "directory"]

    def size(self, path: str) -> int | None:
        try:
            return int(self._store.info(self._path(path))["size"])
        except FileNotFoundError:
            return None

    def remove_file(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._store.rm_file(self._path(path))

    def remove_folder(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._store.rm(self._path(path), recursive=True)

    def _path(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"


def encryption_headers(encryption: EncryptionConfig) -> dict[str, Any]:
    """Parameters of S3's write requests that ask for encryption with AWS KMS."""
    headers: dict[str, Any] = {
        "ServerSideEncryption": "aws:kms",
        "SSEKMSKeyId": encryption.kms_key,
        "BucketKeyEnabled": encryption.bucket_key,
    }
    if encryption.context:
        context = json.dumps(dict(encryption.context), sort_keys=True, separators=(",", ":"))
        headers["SSEKMSEncryptionContext"] = base64.b64encode(context.encode()).decode()
    return headers
