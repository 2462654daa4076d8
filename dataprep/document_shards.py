"""Shards of single documents, which the trainer packs on the fly.

A row is one document, or a preference pair, which is two that stay together: its tokens, which of them are targets, its
example id and, of a pair, where the second document starts and the margin. Lengths are known without reading a token.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from finecut.dataprep import shard_files
from finecut.dataprep.documents import Document
from finecut.dataprep.shards import Blocks, margin_of
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError

_SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("loss_mask", pa.list_(pa.field("item", pa.bool_(), nullable=False)), nullable=False),
        pa.field("example_id", pa.int64(), nullable=False),
    ]
)
_PAIRS_SCHEMA = _SCHEMA.append(pa.field("rejected_start", pa.int32(), nullable=False)).append(
    pa.field("margin", pa.float32(), nullable=False)
)


class DocumentWriter(shard_files.SplitWriter):
    """Writes the documents of one split, each of at most `block_size` tokens; `pairs`: pairs, and nothing else."""

    def __init__(self, folder: Path, split: str, block_size: int, max_bytes: int, pairs: bool = False):
        super().__init__(folder, split, _PAIRS_SCHEMA if pairs else _SCHEMA, max_bytes)
        self._block_size = block_size
        self._pairs = pairs
        self._check_limit(self._row_bytes(block_size), f"document of {block_size}")

    def add(self, document: Document) -> None:
        """Appends one document or pair."""
        assert (document.pair is not None) == self._pairs, "pairs beside documents"
        assert 0 < len(document) <= self._block_size, f"a document of {len(document)} tokens does not fit a block"
        self._add_row([document], self._row_bytes(len(document)))

    @staticmethod
    def _row_bytes(length: int) -> int:
        # Tokens, one bit a target, two 32-bit offsets; example id, start of the second document, margin.
        return 4 * length + length // 8 + 1 + 8 + 16

    def _record(self, rows: list[Sequence[Document]]) -> pa.RecordBatch:
        documents = [document for row in rows for document in row]
        offsets = pa.array(np.cumsum([0, *map(len, documents)]), type=pa.int32())
        values = (
            np.concatenate([document.input_ids_T for document in documents]).astype(np.int32, copy=False),
            np.concatenate([document.loss_mask_T for document in documents]),
        )
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(column), type=self._schema.field(number).type)
            for number, column in enumerate(values)
        ]
        columns.append(pa.array([document.example_id for document in documents], pa.int64()))
        if self._pairs:
            columns.append(pa.array([document.lengths[0] for document in documents], pa.int32()))
            columns.append(pa.array([margin_of(document) for document in documents], pa.float32()))
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


class DocumentReader:
    """Random access to the rows of one split: documents, or pairs. Only lengths are read before they are asked for.

    Attributes:
      lengths_N: Tokens of each row, int32; of both documents where it is a pair.
      attention_work_N: Sum of the squared document lengths of each row, int64.

    Raises UserError as SplitReader does.
    """

    def __init__(
        self, artifact_folder: Path, split: str, verify: bool = True, manifest: artifact_pb2.Artifact | None = None
    ):
        folder = Path(artifact_folder)
        self.manifest: artifact_pb2.Artifact
        self.manifest, entry, batches = shard_files.open_split(folder, split, verify, manifest)
        if shard_files.is_packed(self.manifest):
            raise UserError(f"{folder} holds packed blocks, not documents; set packing.mode: ON_THE_FLY for documents")
        self._batches = [_DocumentBatch(batch) for batch in batches]
        self._ends = list(accumulate(len(batch) for batch in self._batches))
        self.lengths_N = np.concatenate([np.diff(batch.offsets) for batch in self._batches] or [np.empty(0, np.int32)])
        starts_N = np.concatenate([batch.rejected_starts for batch in self._batches] or [np.empty(0, np.int32)])
        self.attention_work_N = starts_N.astype(np.int64) ** 2 + (self.lengths_N - starts_N).astype(np.int64) ** 2
        num_documents = len(self) + int(np.count_nonzero(starts_N))
        if num_documents != entry.document_count:
            raise UserError(
                f"{folder}: split {split!r} has {num_documents} documents, but its manifest says {entry.document_count}"
            )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lengths_N)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (int32) and loss mask (bool) of one row; the tokens still lie in the map."""
        batch, row = self._find(index)
        return batch.read(row)

    def read_blocks(self, groups: Sequence[Sequence[int] | np.ndarray]) -> Blocks:
        """One block for each group of rows, which fit it together, in their order."""
        data = self.manifest.data
        blocks = Blocks.empty(len(groups), data.block_size, data.pad_token_id)
        examples: list[np.ndarray] = []
        margins: list[np.ndarray] = []
        for n, group in enumerate(groups):
            start = 0
            rows = [self._find(int(index)) for index in group]
            for batch, row in rows:
                ids_T, mask_T = batch.read(row)
                place = (n, slice(start, start + len(ids_T)))
                blocks.input_ids_NL[place] = ids_T
                blocks.loss_mask_NL[place] = mask_T
                start += len(ids_T)
            lengths = [batch.document_lengths(row) for batch, row in rows]
            blocks.number_documents(n, np.array([length for two in lengths for length in two], np.int64))
            ids = [batch.example_ids[row] for batch, row in rows]
            examples.append(np.repeat(np.array(ids, np.int64), [len(two) for two in lengths]))
            margins.append(np.array([batch.margins[row] for batch, row in rows if batch.margins is not None]))
        return blocks.with_examples(examples, margins)

    def _find(self, index: int) -> "tuple[_DocumentBatch, int]":
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return self._batches[number], index - (self._ends[number - 1] if number else 0)


class _DocumentBatch:
    """One Arrow record batch, its columns taken apart once."""

    def __init__(self, batch: pa.RecordBatch):
        column = batch.column("input_ids")
        self.offsets = column.offsets.to_numpy()
        self._ids = column.values.to_numpy()
        self._mask = batch.column("loss_mask").values
        names, nothing = batch.schema.names, np.zeros(batch.num_rows, np.int64)
        # Shards of earlier versions have no example ids; those without pairs nothing on pairs.
        self.example_ids = batch.column("example_id").to_numpy() if "example_id" in names else nothing
        self.rejected_starts = batch.column("rejected_start").to_numpy() if "rejected_start" in names else nothing
        self.margins = batch.column("margin").to_numpy() if "margin" in names else None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document_lengths(self, row: int) -> tuple[int, ...]:
        length, second = int(self.offsets[row + 1] - self.offsets[row]), int(self.rejected_starts[row])
        return (second, length - second) if second else (length,)

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        return self._ids[start:end], self._mask[start:end].to_numpy(zero_copy_only=False)
