"""Asks a teacher for what is missing of its shards, whoever it is, and writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from finecut.trainer.teachers import shards
from finecut.trainer.teachers.rows import RowBlocks, RowReader
from finecut.trainer.teachers.shards import Kept, Shard


@dataclasses.dataclass(frozen=True)
class Order:
    """What is wanted of every teacher alike. `key` is of everything that decides the numbers; it names the folder."""

    data: Path
    folder: Path
    key: str
    top_k: int
    vocabulary_size: int
    block_size: int


class Asked(Protocol):
    """A teacher that works its answers out."""

    @property
    def blocks_at_once(self) -> int:
        """Blocks of one call."""

    def ask(self, rows: RowBlocks) -> Kept:
        """Of all trained tokens, in order."""


class ShardMaker:
    """Makes some shards, a few blocks at a time, so that ranks which call together keep step."""

    def __init__(self, order: Order, wanted: Sequence[Shard], blocks_at_once: int) -> None:
        self._order = order
        self._readers = {split: RowReader(order.data, split) for split in {shard.split for shard in wanted}}
        self._wanted = [(shard, self._calls(shard, blocks_at_once)) for shard in wanted]

    def num_calls(self) -> int:
        """How often the teacher is asked."""
        return sum(len(calls) for _, calls in self._wanted)

    def first(self) -> RowBlocks:
        """What the first call asks for."""
        shard, calls = self._wanted[0]
        return self._readers[shard.split].read(calls[0])

    def make(self, teacher: Asked, is_written: bool = True) -> Iterator[Shard | None]:
        """Asks, and writes each shard when it is complete; yields after each call the shard that it completed."""
        order = self._order
        for shard, calls in self._wanted:
            kept = [Kept.empty(order.top_k)]
            counts: list[np.ndarray] = [np.empty(0, np.int64)]
            for number, groups in enumerate(calls, 1):
                rows = self._readers[shard.split].read(groups)
                kept.append(teacher.ask(rows))
                counts.append(rows.num_trained_R)
                if number < len(calls):
                    yield None
            if is_written:
                whole = Kept.joined(kept)
                shards.write(order.folder, order.key, shard, np.concatenate(counts), whole, order.vocabulary_size)
            yield shard

    def _calls(self, shard: Shard, blocks_at_once: int) -> list[list[list[int]]]:
        groups = self._readers[shard.split].groups(shard.rows)
        return [groups[n : n + blocks_at_once] for n in range(0, len(groups), blocks_at_once)]
