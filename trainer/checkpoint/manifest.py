"""What makes a checkpoint folder whole: a manifest with size and SHA-256 of every file, written last.

A folder without a manifest, or whose files do not match it, is torn; it is passed over for the one before. The manifest
guards itself: only the exact text that its own content gives is taken for one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from finecut.trainer.checkpoint.location import Location

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")
_CHUNK_BYTES = 4 << 20
_READERS = 4  # files that are hashed at a time; hashing lets other threads run


@dataclasses.dataclass(frozen=True)
class FileDigest:
    """Length in bytes and lower-case hexadecimal SHA-256 of one file."""

    bytes: int
    sha256: str


Digests = Mapping[str, FileDigest]
"""By path relative to the checkpoint's folder."""


def folder_of(step: int) -> str:
    """Folder of the checkpoint after `step`."""
    return f"step-{step:08d}"


def step_of(folder: str) -> int:
    """The step of a checkpoint folder."""
    match = _NAME.fullmatch(folder)
    assert match, f"{folder} is not a checkpoint folder"
    return int(match[1])


def finish(location: Location, folder: str, digests: Digests) -> None:
    """Writes the manifest: from here on the checkpoint counts."""
    location.write_last(f"{folder}/{MANIFEST}", _text(step_of(folder), digests))


def read(location: Location, folder: str) -> tuple[Digests, str | None]:
    """The files of a checkpoint; and, where the manifest is not whole, why, in words."""
    try:
        text = location.read_text(f"{folder}/{MANIFEST}")
    except FileNotFoundError:
        return {}, "it was not finished"
    except (OSError, ValueError) as error:
        return {}, f"its manifest cannot be read ({error})"
    try:
        digests = {path: FileDigest(**fields) for path, fields in json.loads(text)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"its manifest cannot be read ({error})"
    if text != _text(step_of(folder), digests):
        return {}, "its manifest is damaged"
    return digests, None


def damage(location: Location, folder: str, digests: Digests, share: int = 0, num_shares: int = 1) -> str | None:
    """The first wrong file, in words; None when all are whole. Looks at every `num_shares`-th file from `share` on."""
    paths = sorted(digests)[share::num_shares]
    with ThreadPoolExecutor(_READERS) as executor:
        found = executor.map(lambda path: _damage_of(location, f"{folder}/{path}", digests[path]), paths)
        return next((f"{path} {reason}" for path, reason in zip(paths, found, strict=True) if reason), None)


def _damage_of(location: Location, path: str, digest: FileDigest) -> str | None:
    size = location.size(path)
    if size is None:
        return "is missing"
    if size != digest.bytes:
        return f"has {size:,} bytes instead of {digest.bytes:,}"
    try:
        with location.open(path) as file:
            return "is damaged" if digest_of(file) != digest else None
    except OSError as error:
        return f"cannot be read ({error})"


def digest_of(file: IO[bytes]) -> FileDigest:
    """Digest of what is left of a file."""
    sha256, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK_BYTES):
        sha256.update(chunk)
        size += len(chunk)
    return FileDigest(size, sha256.hexdigest())


def candidates(location: Location) -> list[str]:
    """Checkpoint folders, whole or not, newest first."""
    return sorted((name for name in location.folders() if _NAME.fullmatch(name)), key=step_of, reverse=True)


def newest_whole(
    folders: Iterable[str],
    read: Callable[[str], tuple[Digests, str | None]],
    damage: Callable[[str, Digests], str | None],
) -> tuple[str | None, list[str]]:
    """The first of `folders` that can be used, and a sentence for each before it that cannot.

    `read` and `damage` are those of this module for one location; ranks may share the work.
    """
    passed_over: list[str] = []
    for folder in folders:
        digests, reason = read(folder)
        reason = reason or damage(folder, digests)
        if reason is None:
            return folder, passed_over
        passed_over.append(f"checkpoint {folder} is passed over: {reason}")
    return None, passed_over


def remove(location: Location, folder: str) -> None:
    """Deletes a checkpoint; the manifest first, so that a half-deleted folder is known to be torn."""
    location.remove_file(f"{folder}/{MANIFEST}")
    location.remove_folder(folder)


def prune(location: Location, keep_last: int, keep_every_steps: int | None) -> None:
    """Deletes checkpoints older than the newest `keep_last` finished ones, save multiples of `keep_every_steps`.

    What killed tries left among the older ones goes too.
    """
    finished = 0
    for folder in candidates(location):
        is_finished = location.size(f"{folder}/{MANIFEST}") is not None
        is_kept_for_good = is_finished and keep_every_steps is not None and step_of(folder) % keep_every_steps == 0
        if finished >= keep_last and not is_kept_for_good:
            remove(location, folder)
        finished += is_finished


def _text(step: int, digests: Digests) -> str:
    content = {"step": step, "files": {path: dataclasses.asdict(digests[path]) for path in sorted(digests)}}
    sha256 = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": sha256}, indent=1)
