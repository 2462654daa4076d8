"""Shards of single documents, which the trainer packs on the fly.

A row is one document: its tokens and which of them are targets. Lengths are known without reading a token.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from finecut.dataprep import shard_files
from finecut.dataprep.documents import Document
from finecut.dataprep.shards import Blocks
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError

_SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("loss_mask", pa.list_(pa.field("item", pa.bool_(), nullable=False)), nullable=False),
    ]
)


class DocumentWriter(shard_files.SplitWriter):
    """Writes the documents of one split, each of at most `block_size` tokens."""

    def __init__(self, folder: Path, split: str, block_size: int, max_bytes: int):
        super().__init__(folder, split, _SCHEMA, max_bytes)
        self._block_size = block_size
        self._check_limit(self._row_bytes(block_size), f"document of {block_size}")

    def add(self, document: Document) -> None:
        """Appends one document."""
        assert 0 < len(document) <= self._block_size, f"a document of {len(document)} tokens does not fit a block"
        self._add_row([document], self._row_bytes(len(document)))

    @staticmethod
    def _row_bytes(length: int) -> int:
        # Tokens, one bit a target, two 32-bit offsets.
        return 4 * length + length // 8 + 1 + 8

    def _record(self, rows: list[Sequence[Document]]) -> pa.RecordBatch:
        documents = [document for row in rows for document in row]
        offsets = pa.array(np.cumsum([0, *map(len, documents)]), type=pa.int32())
        values = (
            np.concatenate([document.input_ids_T for document in documents]).astype(np.int32, copy=False),
            np.concatenate([document.loss_mask_T for document in documents]),
        )
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(column), type=field.type)
            for column, field in zip(values, _SCHEMA, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


class DocumentReader:
    """Random access to the documents of one split. Only their lengths are read before they are asked for.

    `lengths_N`: tokens of each document, int32. Raises UserError as SplitReader does.
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
        if len(self) != entry.document_count:
            raise UserError(
                f"{folder}: split {split!r} has {len(self)} documents, but its manifest says {entry.document_count}"
            )

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.lengths_N)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (int32) and loss mask (bool) of one document; the tokens still lie in the map."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return self._batches[number].read(index - (self._ends[number - 1] if number else 0))

    def read_blocks(self, groups: Sequence[Sequence[int] | np.ndarray]) -> Blocks:
        """One block for each group of documents, which fit it together, in their order."""
        data = self.manifest.data
        shape = (len(groups), data.block_size)
        blocks = Blocks(
            input_ids_NL=np.full(shape, data.pad_token_id, np.int32),
            loss_mask_NL=np.zeros(shape, bool),
            document_id_NL=np.full(shape, -1, np.int32),
            position_id_NL=np.zeros(shape, np.int32),
        )
        for n, group in enumerate(groups):
            start = 0
            for document, index in enumerate(group):
                ids_T, mask_T = self.read(int(index))
                place = (n, slice(start, start + len(ids_T)))
                blocks.input_ids_NL[place] = ids_T
                blocks.loss_mask_NL[place] = mask_T
                blocks.document_id_NL[place] = document
                blocks.position_id_NL[place] = np.arange(len(ids_T))
                start += len(ids_T)
        return blocks


class _DocumentBatch:
    """One Arrow record batch, its columns taken apart once."""

    def __init__(self, batch: pa.RecordBatch):
        column = batch.column("input_ids")
        self.offsets = column.offsets.to_numpy()
        self._ids = column.values.to_numpy()
        self._mask = batch.column("loss_mask").values

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        return self._ids[start:end], self._mask[start:end].to_numpy(zero_copy_only=False)
