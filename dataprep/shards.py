"""Shards of packed blocks, as the trainer reads them.

A row is one block: its tokens, which of them are targets, and the lengths and example ids of its documents. Document
and position ids follow from the lengths, so a shard cannot hold ids that contradict each other. Where a block holds
preference pairs, its documents 2k and 2k + 1 are the chosen and the rejected one of pair k. Shapes: N blocks, L tokens
a block, D documents and P pairs in the fullest of them.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from finecut.dataprep import shard_files
from finecut.dataprep.documents import Document
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError


@dataclass(frozen=True)
class Blocks:
    """N blocks of L tokens."""

    input_ids_NL: np.ndarray  # int32; the padding id where padded
    loss_mask_NL: np.ndarray  # bool; True: this token counts as a target, predicted from the position before it
    document_id_NL: np.ndarray  # int32; 0, 1, 2.. within the block, -1 on padding
    position_id_NL: np.ndarray  # int32; restarts at 0 for each document, 0 on padding
    # int64; what a document was made from, see documents.example_id; 0 where a block has fewer, or none is known
    example_id_ND: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    # float32; of preference pairs, by how much chosen is better; NaN where none is declared or a block has fewer
    margin_NP: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @classmethod
    def empty(cls, num_blocks: int, block_size: int, pad_token_id: int = 0) -> "Blocks":
        """All padding."""
        shape = (num_blocks, block_size)
        return cls(
            input_ids_NL=np.full(shape, pad_token_id, np.int32),
            loss_mask_NL=np.zeros(shape, bool),
            document_id_NL=np.full(shape, -1, np.int32),
            position_id_NL=np.zeros(shape, np.int32),
        )

    def number_documents(self, block: int, lengths_D: np.ndarray) -> None:
        """Writes the document and position ids of one block."""
        used = int(lengths_D.sum())
        self.document_id_NL[block, :used] = np.repeat(np.arange(len(lengths_D)), lengths_D)
        self.position_id_NL[block, :used] = np.arange(used) - np.repeat(np.cumsum(lengths_D) - lengths_D, lengths_D)

    def with_examples(self, example_ids: Sequence[np.ndarray], margins: Sequence[np.ndarray]) -> "Blocks":
        """The same with what is known of the documents of each block, in order, and of its pairs."""
        return replace(self, example_id_ND=_padded(example_ids, 0, np.int64), margin_NP=_padded(margins, np.nan))


def _padded(rows: Sequence[np.ndarray], fill: float, dtype: type = np.float32) -> np.ndarray:
    """Rows of different lengths as one array."""
    padded: np.ndarray = np.full((len(rows), max(map(len, rows), default=0)), fill, dtype)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded


class ShardWriter(shard_files.SplitWriter):
    """Writes the blocks of one split; `pairs`: of preference pairs, and of nothing else."""

    def __init__(
        self, folder: Path, split: str, block_size: int, pad_token_id: int, max_bytes: int, pairs: bool = False
    ):
        super().__init__(folder, split, _schema(block_size, pairs), max_bytes)
        self._block_size = block_size
        self._pairs = pairs
        self._pad_token_id = pad_token_id
        self._check_limit(self._row_bytes(1), f"block of {block_size}")

    def add(self, documents: Sequence[Document]) -> None:
        """Appends one block that holds these documents in this order."""
        assert all((document.pair is not None) == self._pairs for document in documents), "pairs beside documents"
        lengths = [length for document in documents for length in document.lengths]
        assert 0 < sum(lengths) <= self._block_size and min(lengths) > 0, f"documents do not fit a block: {lengths}"
        self._add_row(documents, self._row_bytes(len(lengths)))
        self.statistics.block_count += 1

    def _row_bytes(self, num_documents: int) -> int:
        # Tokens, one bit a target; lengths, example ids and margins, each with a 32-bit offset.
        return 4 * self._block_size + self._block_size // 8 + 1 + (4 + 8 + 4) * num_documents + 12

    def _record(self, rows: list[Sequence[Document]]) -> pa.RecordBatch:
        shape = (len(rows), self._block_size)
        input_ids_NL: np.ndarray = np.full(shape, self._pad_token_id, dtype=np.int32)
        loss_mask_NL: np.ndarray = np.zeros(shape, dtype=bool)
        for row, documents in enumerate(rows):
            start = 0
            for document in documents:
                end = start + len(document)
                input_ids_NL[row, start:end] = document.input_ids_T
                loss_mask_NL[row, start:end] = document.loss_mask_T
                start = end
        lengths = [[length for document in documents for length in document.lengths] for documents in rows]
        examples = [[document.example_id for document in documents for _ in document.lengths] for documents in rows]
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(input_ids_NL.ravel()), self._block_size),
            pa.FixedSizeListArray.from_arrays(pa.array(loss_mask_NL.ravel()), self._block_size),
            pa.array(lengths, type=pa.list_(pa.int32())),
            pa.array(examples, type=pa.list_(pa.int64())),
        ]
        if self._pairs:
            margins = [[margin_of(document) for document in documents] for documents in rows]
            columns.append(pa.array(margins, type=pa.list_(pa.float32())))
        fields = zip(columns, self._schema, strict=True)
        return pa.RecordBatch.from_arrays([column.cast(f.type) for column, f in fields], schema=self._schema)


def margin_of(document: Document) -> float:
    """NaN where none is declared."""
    return np.nan if document.pair is None or document.pair.margin is None else document.pair.margin


class BlockReader(Protocol):
    """Random access to blocks of `block_size` tokens, wherever they come from."""

    @property
    def block_size(self) -> int: ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Blocks:
        """The blocks at these positions, in this order."""


class SplitReader:
    """Random access to the blocks of one split of a data artifact. Nothing is read until it is asked for.

    Raises UserError where the artifact is missing, torn or corrupt, or has no such split. `verify` compares the files
    with the SHA-256 of the manifest; a group of ranks on one host may do so on one of them. `manifest` is given where
    it is not written yet, to look at shards before they become an artifact.
    """

    def __init__(
        self, artifact_folder: Path, split: str, verify: bool = True, manifest: artifact_pb2.Artifact | None = None
    ):
        folder = Path(artifact_folder)
        self.manifest: artifact_pb2.Artifact
        self.manifest, entry, self._batches = shard_files.open_split(folder, split, verify, manifest)
        if not shard_files.is_packed(self.manifest):
            raise UserError(f"{folder} holds documents, which the trainer packs; set packing.mode: OFFLINE for blocks")
        self.block_size: int = self.manifest.data.block_size
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        if len(self) != entry.block_count:
            raise UserError(
                f"{folder}: split {split!r} has {len(self)} blocks, but its manifest says {entry.block_count}"
            )

    def __len__(self) -> int:
        """Number of blocks."""
        return self._ends[-1] if self._ends else 0

    def read(self, indices: Sequence[int]) -> Blocks:
        """The blocks at these positions, in this order, copied out of the map."""
        rows = [self._row(int(index)) for index in indices]
        blocks = Blocks.empty(len(rows), self.block_size)
        for n, (batch, row) in enumerate(rows):
            start, stop = row * self.block_size, (row + 1) * self.block_size
            blocks.input_ids_NL[n] = batch.column("input_ids").values.slice(start, self.block_size).to_numpy()
            mask = batch.column("loss_mask").values[start:stop]
            blocks.loss_mask_NL[n] = mask.to_numpy(zero_copy_only=False)
            lengths = batch.column("document_lengths")[row].values.to_numpy()
            blocks.number_documents(n, lengths)
        examples, margins = (self._of_documents(rows, name) for name in ("example_ids", "margins"))
        return blocks.with_examples(examples, margins)

    @staticmethod
    def _of_documents(rows: list[tuple[pa.RecordBatch, int]], name: str) -> list[np.ndarray]:
        """One array a row; empty where shards have no such column, as those of earlier versions or without pairs."""
        none: np.ndarray = np.empty(0, np.int64)
        return [
            batch.column(name)[row].values.to_numpy() if name in batch.schema.names else none for batch, row in rows
        ]

    def attention_work(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Sum of the squared document lengths of each of these blocks, int64 [N]. No token is read."""
        return self._work[np.asarray(indices, dtype=np.int64)]

    def rows(self, index: int) -> np.ndarray:
        """The rows of the split that make this block: itself."""
        return np.array([index])

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Tokens of each block without padding, int64 [N]. No token is read."""
        return self._sum_of_lengths(1)

    @cached_property
    def _work(self) -> np.ndarray:
        return self._sum_of_lengths(2)

    def _sum_of_lengths(self, power: int) -> np.ndarray:
        columns = [batch.column("document_lengths") for batch in self._batches]
        starts = [column.offsets.to_numpy()[:-1] - column.offsets[0].as_py() for column in columns]
        powers = [column.flatten().to_numpy().astype(np.int64) ** power for column in columns]
        # No block is empty, so each start begins a sum of its own.
        sums = [np.add.reduceat(*pair) for pair in zip(powers, starts, strict=True)]
        return np.concatenate(sums or [np.empty(0, np.int64)])

    def _row(self, index: int) -> tuple[pa.RecordBatch, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return self._batches[number], index - (self._ends[number - 1] if number else 0)


def _schema(block_size: int, pairs: bool) -> pa.Schema:
    fields = [
        pa.field("input_ids", pa.list_(pa.field("item", pa.int32(), nullable=False), block_size), nullable=False),
        pa.field("loss_mask", pa.list_(pa.field("item", pa.bool_(), nullable=False), block_size), nullable=False),
        pa.field("document_lengths", pa.list_(pa.int32()), nullable=False),
        pa.field("example_ids", pa.list_(pa.int64()), nullable=False),
    ]
    if pairs:
        fields.append(pa.field("margins", pa.list_(pa.float32()), nullable=False))
    return pa.schema(fields)
