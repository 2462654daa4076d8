"""A teacher that is not there: what it said is read from disk."""

from __future__ import annotations

import contextlib
import dataclasses
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.ops.cross_entropy import TrainedTokens
from finecut.trainer.ops.kept_tokens import KeptTokens
from finecut.trainer.teachers.shards import Kept, Shard, ShardFile


class StoredTeacher:
    """Looks rows up in the shards of their split. Files are opened when they are first asked for."""

    def __init__(self, folder: Path, shards: Sequence[Shard], top_k: int) -> None:
        """`shards`: those of each split in the order of their rows."""
        self._folder = folder
        self._top_k = top_k
        self._shards: dict[str, list[Shard]] = {}
        for shard in shards:
            self._shards.setdefault(shard.split, []).append(shard)
        self._files: dict[Shard, ShardFile] = {}

    @contextlib.contextmanager
    def says(self, batch: MicroBatch, trained: TrainedTokens) -> Iterator[KeptTokens]:
        """Of the rows that the batch was made of."""
        rows = [int(row) for block in batch.rows for row in block]
        kept = Kept.joined([Kept.empty(self._top_k), *(self._read(batch.split, row) for row in rows)])
        device = batch.input_ids_BL.device
        found = KeptTokens(*(torch.from_numpy(values).to(device) for values in dataclasses.astuple(kept)))
        assert len(found) == len(trained.position_N), "rows and their trained tokens do not belong together"
        yield found

    def _read(self, split: str, row: int) -> Kept:
        shards = self._shards[split]
        shard = shards[bisect_right(shards, row, key=lambda candidate: candidate.first_row) - 1]
        if shard not in self._files:
            self._files[shard] = ShardFile(self._folder, shard)
        return self._files[shard].read(row)
