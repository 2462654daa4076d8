"""Input files on disk or behind a URL ("s3://bucket/key", anything that fsspec knows), compressed or not."""

import bz2
import glob
import gzip
import hashlib
import io
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import fsspec
import pyarrow as pa

from finecut.proto.config import UserError
from finecut.proto.run import files

# What a store says of a version of an object, best first; times are a last resort.
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "checksum", "LastModified", "last_modified", "mtime", "created")


@dataclass(frozen=True)
class RemoteFile:
    """A file or folder behind a URL, with the few methods of `Path` that readers use."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemoteFile":
        return RemoteFile(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self.url).suffixes

    def is_dir(self) -> bool:
        filesystem, path = fsspec.core.url_to_fs(self.url)
        return bool(filesystem.isdir(path))

    def exists(self) -> bool:
        filesystem, path = fsspec.core.url_to_fs(self.url)
        return bool(filesystem.exists(path))

    def open(self, mode: str = "rb") -> IO[bytes]:
        filesystem, path = fsspec.core.url_to_fs(self.url)
        return cast(IO[bytes], filesystem.open(path, mode))


InputFile = Path | RemoteFile


@dataclass(frozen=True)
class Span:
    """A part of a file, [start, end): bytes of a file of lines, rows of a table.

    Attributes:
      end: None: up to the file's end.
      first: What its first line or row is called in errors; they count from 1.
    """

    start: int = 0
    end: int | None = None
    first: int = 1


WHOLE = Span()


def is_url(place: str) -> bool:
    return "://" in place


def expand(pattern: str) -> list[InputFile]:
    """The files and folders that a path, a URL or a glob of either names, in the order of names.

    Raises UserError where a store cannot be asked: an unknown kind of URL, no credentials, no network.
    """
    if not is_url(pattern):
        if Path(pattern).exists():
            return [Path(pattern)]
        return [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    try:
        filesystem, path = fsspec.core.url_to_fs(pattern)
        if glob.has_magic(path):
            matches = sorted(filesystem.glob(path))
        else:
            matches = [path] if filesystem.exists(path) else []
        return [RemoteFile(filesystem.unstrip_protocol(match)) for match in matches]
    except Exception as error:  # each kind of store has exceptions of its own
        raise UserError(f"cannot look for {pattern}: {describe(error)}") from error


def open_bytes(path: InputFile) -> IO[bytes]:
    """The file's content, decompressed by its ending."""
    raw = path.open("rb")
    wrap = _DECOMPRESSORS.get("".join(path.suffixes[-1:]))
    # A reader of our own: stores' files read lines of any length, whatever the bound.
    return cast(IO[bytes], io.BufferedReader(wrap(raw) if wrap else cast(Any, raw), 1 << 20))


def read_text(place: str) -> str:
    """A small file, as UTF-8."""
    with open_bytes(RemoteFile(place) if is_url(place) else Path(place)) as file:
        return file.read().decode("utf-8")


def fingerprint(path: InputFile) -> str:
    """SHA-256 of a file's bytes; for a remote file, of its URL, size and the version that its store declares."""
    if isinstance(path, Path):
        return files.sha256_of_file(path)
    try:
        filesystem, name = fsspec.core.url_to_fs(path.url)
        info = filesystem.info(name)
    except Exception as error:  # each kind of store has exceptions of its own
        raise UserError(f"cannot look at {path}: {describe(error)}") from error
    version = next((str(info[field]) for field in _VERSION_FIELDS if info.get(field)), "")
    return hashlib.sha256(f"{path.url}\n{info.get('size')}\n{version}".encode()).hexdigest()


def describe(error: Exception) -> str:
    """The first line of what an exception says."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _zstd(raw: IO[bytes]) -> Any:
    return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")


_DECOMPRESSORS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw, mode="rb"),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstd,
}
COMPRESSED_ENDINGS = tuple(_DECOMPRESSORS)
