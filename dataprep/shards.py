"""Shards: Arrow IPC files of packed blocks, written once and then memory-mapped.

A row is one block: its tokens, which of them are targets, and the lengths of its documents. Document and position ids
follow from the lengths, so a shard cannot hold ids that contradict each other. Shapes: N blocks, L tokens a block.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from finecut.dataprep.documents import Document
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError
from finecut.proto.run import artifacts

# Rows are buffered up to this size and then written as one Arrow record batch.
BATCH_BYTES = 8 << 20
# Generous bounds on what Arrow adds: a batch's header and buffer alignment; a file's schema and footer.
BATCH_OVERHEAD = 2048
FILE_OVERHEAD = 4096
PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True)
class Blocks:
    """N blocks of L tokens."""

    input_ids_NL: np.ndarray  # int32; the padding id where padded
    loss_mask_NL: np.ndarray  # bool; True: this token counts as a target, predicted from the position before it
    document_id_NL: np.ndarray  # int32; 0, 1, 2.. within the block, -1 on padding
    position_id_NL: np.ndarray  # int32; restarts at 0 for each document, 0 on padding


class ShardWriter:
    """Writes the blocks of one split into files of at most `max_bytes`.

    A file carries a temporary name until it is whole, and no reader takes a folder without a manifest, which the
    caller writes last: a writer that is killed leaves nothing that could be mistaken for data.
    """

    def __init__(self, folder: Path, split: str, block_size: int, pad_token_id: int, max_bytes: int):
        self._folder = folder
        self._block_size = block_size
        self._pad_token_id = pad_token_id
        self._max_bytes = max_bytes
        self._schema = _schema(block_size)
        self._batch = _Batch()
        self._file: _ShardFile | None = None
        self.statistics = artifact_pb2.DataArtifact.Split(name=split)
        smallest = self._row_bytes(1) + BATCH_OVERHEAD + FILE_OVERHEAD
        if max_bytes < smallest:
            raise UserError(
                f"shards.max_bytes: {max_bytes} is too small for one block of {block_size} tokens; "
                f"use at least {smallest}"
            )

    def add(self, documents: Sequence[Document]) -> None:
        """Appends one block that holds these documents in this order."""
        lengths = [len(document) for document in documents]
        assert 0 < sum(lengths) <= self._block_size and min(lengths) > 0, f"documents do not fit a block: {lengths}"
        assert not any(document.loss_mask_T[0] for document in documents), "the first token of a document is no target"
        row_bytes = self._row_bytes(len(lengths))
        if self._projected(row_bytes) > self._max_bytes:
            self._finish_file()
        self._batch.append(documents, lengths, row_bytes)
        if self._batch.bytes >= BATCH_BYTES:
            self._flush()
        self._count(documents)

    def close(self) -> artifact_pb2.DataArtifact.Split:
        """Finishes the last file and returns the split's statistics for the manifest."""
        self._finish_file()
        return self.statistics

    def _row_bytes(self, num_documents: int) -> int:
        # Tokens, one bit a target, the lengths with one 32-bit offset.
        return 4 * self._block_size + self._block_size // 8 + 1 + 4 * num_documents + 4

    def _projected(self, row_bytes: int) -> int:
        written = self._file.bytes if self._file else 0
        return written + self._batch.bytes + row_bytes + BATCH_OVERHEAD + FILE_OVERHEAD

    def _count(self, documents: Sequence[Document]) -> None:
        self.statistics.block_count += 1
        self.statistics.document_count += len(documents)
        self.statistics.token_count += sum(len(document) for document in documents)
        self.statistics.trained_token_count += sum(int(document.loss_mask_T.sum()) for document in documents)
        self.statistics.truncated_document_count += sum(document.truncated for document in documents)
        self.statistics.later_piece_count += sum(document.later_piece for document in documents)

    def _flush(self) -> None:
        if not self._batch.lengths:
            return
        if self._file is None:
            name = f"{self.statistics.name}-{len(self.statistics.shards):05d}.arrow"
            self._file = _ShardFile(self._folder / name, self._schema)
        self._file.write(self._batch.record(self._schema, self._block_size, self._pad_token_id))
        self._batch = _Batch()

    def _finish_file(self) -> None:
        self._flush()
        if self._file is not None:
            self.statistics.shards.append(self._file.finish())
            self._file = None


@dataclass
class _Batch:
    """Rows that wait to be written together."""

    documents: list[Sequence[Document]] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    bytes: int = 0

    def append(self, documents: Sequence[Document], lengths: list[int], row_bytes: int) -> None:
        self.documents.append(documents)
        self.lengths.append(lengths)
        self.bytes += row_bytes

    def record(self, schema: pa.Schema, block_size: int, pad_token_id: int) -> pa.RecordBatch:
        input_ids_NL: np.ndarray = np.full((len(self.lengths), block_size), pad_token_id, dtype=np.int32)
        loss_mask_NL: np.ndarray = np.zeros((len(self.lengths), block_size), dtype=bool)
        for row, documents in enumerate(self.documents):
            start = 0
            for document in documents:
                end = start + len(document)
                input_ids_NL[row, start:end] = document.input_ids_T
                loss_mask_NL[row, start:end] = document.loss_mask_T
                start = end
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(input_ids_NL.ravel()), block_size),
            pa.FixedSizeListArray.from_arrays(pa.array(loss_mask_NL.ravel()), block_size),
            pa.array(self.lengths, type=pa.list_(pa.int32())),
        ]
        return pa.RecordBatch.from_arrays([c.cast(f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


class _ShardFile:
    """One Arrow IPC file under its temporary name until `finish`."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._path = path
        self._partial = path.with_name(path.name + PARTIAL_SUFFIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sink = pa.OSFile(str(self._partial), "wb")
        self._writer = pa.ipc.new_file(self._sink, schema)

    @property
    def bytes(self) -> int:
        return self._sink.tell()

    def write(self, record: pa.RecordBatch) -> None:
        self._writer.write_batch(record)

    def finish(self) -> str:
        self._writer.close()
        self._sink.close()
        self._partial.rename(self._path)
        return self._path.name


class SplitReader:
    """Random access to the blocks of one split of a data artifact. Nothing is read until it is asked for.

    Raises UserError where the artifact is missing, torn or corrupt, or has no such split. `verify` compares the files
    with the SHA-256 of the manifest; a group of ranks on one host may do so on one of them.
    """

    def __init__(self, artifact_folder: Path, split: str, verify: bool = True):
        folder = Path(artifact_folder)
        manifest = artifacts.read(folder, verify=verify)
        if manifest.WhichOneof("content") != "data":
            raise UserError(f"{folder} holds no prepared data; give the artifact of a data_prep stage")
        found = {entry.name: entry for entry in manifest.data.splits}
        if split not in found:
            raise UserError(
                f"{folder} has no split {split!r}, only {', '.join(found)}; set data_prep.evaluation.fraction"
            )
        self.manifest: artifact_pb2.Artifact = manifest
        self.block_size: int = manifest.data.block_size
        self._batches = [batch for name in found[split].shards for batch in _map_batches(folder / name)]
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        expected = found[split].block_count
        if len(self) != expected:
            raise UserError(f"{folder}: split {split!r} has {len(self)} blocks, but its manifest says {expected}")

    def __len__(self) -> int:
        """Number of blocks."""
        return self._ends[-1] if self._ends else 0

    def read(self, indices: Sequence[int]) -> Blocks:
        """The blocks at these positions, in this order, copied out of the map."""
        rows = [self._row(int(index)) for index in indices]
        shape = (len(rows), self.block_size)
        blocks = Blocks(
            input_ids_NL=np.empty(shape, np.int32),
            loss_mask_NL=np.empty(shape, bool),
            document_id_NL=np.full(shape, -1, np.int32),
            position_id_NL=np.zeros(shape, np.int32),
        )
        for n, (batch, row) in enumerate(rows):
            start, stop = row * self.block_size, (row + 1) * self.block_size
            blocks.input_ids_NL[n] = batch.column("input_ids").values.slice(start, self.block_size).to_numpy()
            mask = batch.column("loss_mask").values[start:stop]
            blocks.loss_mask_NL[n] = mask.to_numpy(zero_copy_only=False)
            lengths = batch.column("document_lengths")[row].values.to_numpy()
            used = int(lengths.sum())
            blocks.document_id_NL[n, :used] = np.repeat(np.arange(len(lengths)), lengths)
            blocks.position_id_NL[n, :used] = np.arange(used) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return blocks

    def attention_work(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Sum of the squared document lengths of each of these blocks, int64 [N]. No token is read."""
        return self._work[np.asarray(indices, dtype=np.int64)]

    @cached_property
    def _work(self) -> np.ndarray:
        columns = [batch.column("document_lengths") for batch in self._batches]
        starts = [column.offsets.to_numpy()[:-1] - column.offsets[0].as_py() for column in columns]
        squares = [column.flatten().to_numpy().astype(np.int64) ** 2 for column in columns]
        # No block is empty, so each start begins a sum of its own.
        return np.concatenate([np.add.reduceat(*pair) for pair in zip(squares, starts, strict=True)])

    def _row(self, index: int) -> tuple[pa.RecordBatch, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return self._batches[number], index - (self._ends[number - 1] if number else 0)


def _schema(block_size: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("input_ids", pa.list_(pa.field("item", pa.int32(), nullable=False), block_size), nullable=False),
            pa.field("loss_mask", pa.list_(pa.field("item", pa.bool_(), nullable=False), block_size), nullable=False),
            pa.field("document_lengths", pa.list_(pa.int32()), nullable=False),
        ]
    )


def _map_batches(path: Path) -> list[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is not a readable shard ({error}); run the data_prep stage again") from error
