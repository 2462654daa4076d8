"""What all shards share: Arrow IPC files of bounded size, written once under a temporary name and then memory-mapped.

The kinds of shard differ in what a row is (`shards`: a packed block; `document_shards`: a document).
"""

import abc
from collections.abc import Sequence
from pathlib import Path

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


class SplitWriter(abc.ABC):
    """Writes the rows of one split into files of at most `max_bytes`; a row holds one document or more.

    A file carries a temporary name until it is whole, and no reader takes a folder without a manifest, which the
    caller writes last: a writer that is killed leaves nothing that could be mistaken for data.
    """

    def __init__(self, folder: Path, split: str, schema: pa.Schema, max_bytes: int):
        self._folder = folder
        self._schema = schema
        self._max_bytes = max_bytes
        self._rows: list[Sequence[Document]] = []  # that wait to be written together
        self._waiting_bytes = 0
        self._file: _ShardFile | None = None
        self.statistics = artifact_pb2.DataArtifact.Split(name=split)

    def close(self) -> artifact_pb2.DataArtifact.Split:
        """Finishes the last file and returns the split's statistics for the manifest."""
        self._finish_file()
        return self.statistics

    @abc.abstractmethod
    def _record(self, rows: list[Sequence[Document]]) -> pa.RecordBatch:
        """The rows as Arrow."""

    def _check_limit(self, row_bytes: int, row: str) -> None:
        smallest = row_bytes + BATCH_OVERHEAD + FILE_OVERHEAD
        if self._max_bytes < smallest:
            raise UserError(
                f"shards.max_bytes: {self._max_bytes} is too small for one {row} tokens; use at least {smallest}"
            )

    def _add_row(self, documents: Sequence[Document], row_bytes: int) -> None:
        first_tokens = (document.loss_mask_T[start] for document in documents for start in document.starts)
        assert not any(first_tokens), "the first token of a document is no target"
        written = self._file.bytes if self._file else 0
        if written + self._waiting_bytes + row_bytes + BATCH_OVERHEAD + FILE_OVERHEAD > self._max_bytes:
            self._finish_file()
        self._rows.append(documents)
        self._waiting_bytes += row_bytes
        if self._waiting_bytes >= BATCH_BYTES:
            self._flush()
        self._count(documents)

    def _count(self, documents: Sequence[Document]) -> None:
        self.statistics.document_count += sum(len(document.lengths) for document in documents)
        self.statistics.token_count += sum(len(document) for document in documents)
        self.statistics.trained_token_count += sum(int(document.loss_mask_T.sum()) for document in documents)
        self.statistics.truncated_document_count += sum(d.truncated * len(d.lengths) for d in documents)
        self.statistics.later_piece_count += sum(document.later_piece for document in documents)
        earlier = [len(document) for document in documents if document.earlier_turn]
        self.statistics.earlier_turn_document_count += len(earlier)
        self.statistics.earlier_turn_token_count += sum(earlier)

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._file is None:
            name = f"{self.statistics.name}-{len(self.statistics.shards):05d}.arrow"
            self._file = _ShardFile(self._folder / name, self._schema)
        self._file.write(self._record(self._rows))
        self._rows, self._waiting_bytes = [], 0

    def _finish_file(self) -> None:
        self._flush()
        if self._file is not None:
            self.statistics.shards.append(self._file.finish())
            self._file = None


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


def is_packed(manifest: artifact_pb2.Artifact) -> bool:
    """Whether the rows of a data artifact's shards are packed blocks. Artifacts of earlier versions do not say: yes."""
    return manifest.data.packed if manifest.data.HasField("packed") else True


def check_kind(folder: Path, manifest: artifact_pb2.Artifact, wanted: "artifact_pb2.DataArtifact.Kind") -> None:
    """Raises UserError where a data artifact holds another kind of example."""
    kinds = artifact_pb2.DataArtifact
    kind = manifest.data.kind or kinds.DOCUMENTS
    if kind != wanted:
        words = {kinds.DOCUMENTS: "documents", kinds.PAIRS: "preference pairs", kinds.PROMPTS: "prompts"}
        raise UserError(
            f"{folder} holds {words[kind]}, and {words[wanted]} are needed; prepare them from records of that kind"
        )


def count_in_words(split: artifact_pb2.DataArtifact.Split, data: artifact_pb2.DataArtifact) -> str:
    """How many examples of their kind a split has: "1,204 preference pairs"."""
    if data.kind == artifact_pb2.DataArtifact.PAIRS:
        return f"{split.document_count // 2:,} preference pairs"
    return f"{split.document_count:,} {'prompts' if data.kind == artifact_pb2.DataArtifact.PROMPTS else 'documents'}"


def open_split(
    folder: Path, split: str, verify: bool, manifest: artifact_pb2.Artifact | None = None
) -> tuple[artifact_pb2.Artifact, artifact_pb2.DataArtifact.Split, list[pa.RecordBatch]]:
    """The manifest, the split's entry in it and its rows, memory-mapped.

    `manifest` is given where it is not written yet, to look at shards before they become an artifact. Raises UserError
    where the artifact is missing, torn or corrupt, or has no such split.
    """
    manifest = manifest or artifacts.read(folder, verify=verify)
    if manifest.WhichOneof("content") != "data":
        raise UserError(f"{folder} holds no prepared data; give the artifact of a data_prep stage")
    found = {entry.name: entry for entry in manifest.data.splits}
    if split not in found:
        raise UserError(f"{folder} has no split {split!r}, only {', '.join(found)}; set data_prep.evaluation.fraction")
    batches = [batch for name in found[split].shards for batch in _map_batches(folder / name)]
    return manifest, found[split], batches


def _map_batches(path: Path) -> list[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is not a readable shard ({error}); run the data_prep stage again") from error
