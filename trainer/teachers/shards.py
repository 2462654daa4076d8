"""What a teacher keeps, on disk: memory-mapped files of consecutive rows.

    <key>/train-00000.safetensors    token_ids [N, K], log_probs [N, K] (FP32), rest [N] (FP32), num_trained [rows]

N trained tokens of all rows in order, K likeliest tokens. Ids take two bytes where the vocabulary allows it. The
metadata hold the key of everything that decides the numbers, and a digest of the numbers; a file appears when it is
whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from finecut.proto.run import files

# Small enough that little is lost with a process and ranks have something to share, large enough to be read in one go.
_SHARD_BYTES = 64 * 2**20
_TWO_BYTES = 2**16


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file's place: rows of a split."""

    split: str
    number: int
    first_row: int
    end_row: int

    @property
    def rows(self) -> range:
        """Its rows."""
        return range(self.first_row, self.end_row)

    def path(self, folder: Path) -> Path:
        """Its file."""
        return folder / f"{self.split}-{self.number:05d}.safetensors"


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is kept of N trained tokens: [N, K] token ids, [N, K] log-probabilities in FP32, [N] that of all others."""

    token_ids_NK: np.ndarray
    log_probs_NK: np.ndarray
    rest_N: np.ndarray

    @staticmethod
    def empty(top_k: int) -> Kept:
        """Of no token."""
        shape = (0, top_k)
        return Kept(np.empty(shape, np.int64), np.empty(shape, np.float32), np.empty(0, np.float32))

    @staticmethod
    def joined(parts: Sequence[Kept]) -> Kept:
        """One after the other."""
        columns = zip(*(dataclasses.astuple(part) for part in parts), strict=True)
        return Kept(*(np.concatenate(column) for column in columns))


def plan(split: str, num_tokens_R: np.ndarray, top_k: int) -> list[Shard]:
    """Which rows share a file: as many as fit, were every token trained."""
    if not len(num_tokens_R):
        return []
    ends_R = np.cumsum(num_tokens_R.astype(np.int64)) * (8 * top_k + 4)
    number_R = np.maximum(0, ends_R - 1) // _SHARD_BYTES
    starts = np.flatnonzero(np.diff(number_R, prepend=-1)).tolist()
    ends = [*starts[1:], len(num_tokens_R)]
    return [Shard(split, n, *rows) for n, rows in enumerate(zip(starts, ends, strict=True))]


def write(folder: Path, key: str, shard: Shard, num_trained_R: np.ndarray, kept: Kept, vocabulary_size: int) -> None:
    """Writes the file whole, or not at all."""
    tensors: dict[str, np.ndarray] = {
        "token_ids": kept.token_ids_NK.astype(np.uint16 if vocabulary_size <= _TWO_BYTES else np.uint32),
        "log_probs": kept.log_probs_NK.astype(np.float32),
        "rest": kept.rest_N.astype(np.float32),
        "num_trained": num_trained_R.astype(np.int64),
    }
    path = shard.path(folder)
    partial = path.with_suffix(f".partial-{os.getpid()}")
    partial.write_bytes(save(tensors, {"about": _about(key, shard), "sha256": _digest(tensors)}))
    files.sync_file(partial)
    os.replace(partial, path)
    files.sync_folder(folder)


def is_whole(folder: Path, key: str, shard: Shard) -> bool:
    """Whether the shard is there, says what this key asks for, and is undamaged; reads all of it."""
    try:
        with safe_open(shard.path(folder), framework="np") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError):  # none, or a part of one
        return False
    return about.get("about") == _about(key, shard) and about.get("sha256") == _digest(tensors)


class ShardFile:
    """One file, mapped: nothing is read until it is asked for."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self._file = safe_open(shard.path(folder), framework="np")
        self._first_row = shard.first_row
        self._top_k: int = self._file.get_slice("token_ids").get_shape()[1]
        self._ends_R = np.cumsum(self._file.get_tensor("num_trained"))

    def read(self, row: int) -> Kept:
        """Of a row's trained tokens."""
        place = row - self._first_row
        tokens = slice(int(self._ends_R[place - 1]) if place else 0, int(self._ends_R[place]))
        if tokens.start == tokens.stop:  # safetensors takes no empty slices
            return Kept.empty(self._top_k)
        ids, log_probs, rest = (self._file.get_slice(name)[tokens] for name in ("token_ids", "log_probs", "rest"))
        return Kept(ids.astype(np.int64), log_probs, rest)


def _about(key: str, shard: Shard) -> str:
    return json.dumps([key, shard.split, shard.first_row, shard.end_row])


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
