"""The rows of a data artifact, blocks or documents, as blocks for a teacher to read.

Shapes: B blocks, L tokens a block, R rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from finecut.dataprep import shard_files
from finecut.dataprep.document_shards import DocumentReader
from finecut.dataprep.shards import Blocks, SplitReader
from finecut.proto.run import artifacts
from finecut.trainer.data.batches import IGNORED, targets_of


@dataclasses.dataclass(frozen=True)
class RowBlocks:
    """Blocks that hold some rows, in order; and how many tokens of each row are trained, int64 [R]."""

    blocks: Blocks
    targets_BL: np.ndarray
    num_trained_R: np.ndarray

    def documents(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each document its tokens, [T], and which places have a target, bool [T]."""
        for ids_L, targets_L, document_L in zip(
            self.blocks.input_ids_NL, self.targets_BL, self.blocks.document_id_NL, strict=True
        ):
            for number in range(int(document_L.max()) + 1):
                in_document_L = document_L == number
                yield ids_L[in_document_L], targets_L[in_document_L] != IGNORED


class RowReader:
    """One split. A row is what its shards hold: a block that was packed beforehand, or a document.

    Attributes:
      num_tokens_R: Of each row, without padding. No token is read for it.
    """

    def __init__(self, folder: Path, split: str) -> None:
        """Files were checked before."""
        self._packed: SplitReader | None = None
        self._documents: DocumentReader | None = None
        if shard_files.is_packed(artifacts.read(folder)):
            self._packed = SplitReader(folder, split, verify=False)
            self.num_tokens_R: np.ndarray = self._packed.num_tokens
            self.block_size = self._packed.block_size
        else:
            self._documents = DocumentReader(folder, split, verify=False)
            self.num_tokens_R = self._documents.lengths_N
            self.block_size = self._documents.manifest.data.block_size

    def groups(self, rows: range) -> list[list[int]]:
        """Rows that make a block together, in order."""
        if self._packed is not None:
            return [[row] for row in rows]
        found: list[list[int]] = []
        room = 0
        for row in rows:
            length = int(self.num_tokens_R[row])
            if not found or length > room:
                found.append([])
                room = self.block_size
            found[-1].append(row)
            room -= length
        return found

    def read(self, groups: list[list[int]]) -> RowBlocks:
        """A block for each group."""
        if self._packed is not None:
            blocks = self._packed.read([row for group in groups for row in group])
            targets_BL = targets_of(blocks)
            return RowBlocks(blocks, targets_BL, (targets_BL != IGNORED).sum(1))
        assert self._documents is not None
        blocks = self._documents.read_blocks(groups)
        targets_BL = targets_of(blocks)
        counts = [
            np.bincount(document_L[targets_L != IGNORED], minlength=len(group))
            for group, document_L, targets_L in zip(groups, blocks.document_id_NL, targets_BL, strict=True)
        ]
        return RowBlocks(blocks, targets_BL, np.concatenate(counts))
