"""Shards of prompts for rollouts: a row is one prompt, with what its answers are judged by. Nothing is packed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("reference", pa.string()),
        pa.field("verifier", pa.string()),
    ]
)


@dataclass(frozen=True)
class PromptRow:
    """What a rollout starts from."""

    input_ids_T: np.ndarray  # int32; up to where the model answers
    example_id: int  # see documents.example_id
    source: str  # name in the job file
    reference: str | None  # the answer that verifiers compare with
    verifier: str | None  # None: the recipe's


class PromptWriter(shard_files.SplitWriter):
    """Writes the prompts of one split, each of at most `max_tokens`."""

    def __init__(self, folder: Path, split: str, max_tokens: int, max_bytes: int):
        super().__init__(folder, split, _SCHEMA, max_bytes)
        self._max_tokens = max_tokens
        self._check_limit(4 * max_tokens, f"prompt of {max_tokens}")

    def add(self, document: Document) -> None:
        """Appends one prompt. Raises UserError where a file cannot hold what belongs to it."""
        assert document.task is not None and 0 < len(document) <= self._max_tokens, document
        texts = (document.task.source, document.task.reference, document.task.verifier)
        # Tokens and two offsets, the example id, three texts with an offset and a bit each.
        row_bytes = 4 * len(document) + 8 + 8 + sum(len((text or "").encode()) + 5 for text in texts)
        self._check_limit(row_bytes, f"prompt, with its reference, of {len(document)}")
        self._add_row([document], row_bytes)

    def _record(self, rows: list[Sequence[Document]]) -> pa.RecordBatch:
        documents = [document for row in rows for document in row]
        tasks = [document.task for document in documents if document.task]
        offsets = pa.array(np.cumsum([0, *map(len, documents)]), type=pa.int32())
        ids = np.concatenate([document.input_ids_T for document in documents]).astype(np.int32, copy=False)
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(ids), type=_SCHEMA.field(0).type),
            pa.array([document.example_id for document in documents], pa.int64()),
            pa.array([task.source for task in tasks], pa.string()),
            pa.array([task.reference for task in tasks], pa.string()),
            pa.array([task.verifier for task in tasks], pa.string()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


class PromptReader:
    """Random access to the prompts of one split.

    `lengths_N`: tokens of each prompt, int32. Raises UserError as SplitReader does.
    """

    def __init__(
        self, artifact_folder: Path, split: str, verify: bool = True, manifest: artifact_pb2.Artifact | None = None
    ):
        folder = Path(artifact_folder)
        self.manifest: artifact_pb2.Artifact
        self.manifest, entry, batches = shard_files.open_split(folder, split, verify, manifest)
        shard_files.check_kind(folder, self.manifest, artifact_pb2.DataArtifact.PROMPTS)
        self._rows = [(batch, row) for batch in batches for row in range(batch.num_rows)]
        offsets = [batch.column("input_ids").offsets.to_numpy() for batch in batches]
        self.lengths_N = np.concatenate([np.diff(o) for o in offsets] or [np.empty(0, np.int32)])
        if len(self) != entry.document_count:
            raise UserError(
                f"{folder}: split {split!r} has {len(self)} prompts, but its manifest says {entry.document_count}"
            )

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self._rows)

    def __iter__(self) -> Iterator[PromptRow]:
        return map(self.read, range(len(self)))

    def read(self, index: int) -> PromptRow:
        """One prompt; its tokens still lie in the map."""
        if not 0 <= index < len(self):
            raise IndexError(f"prompt {index} of {len(self)}")
        batch, row = self._rows[index]
        return PromptRow(
            input_ids_T=batch.column("input_ids")[row].values.to_numpy(),
            example_id=batch.column("example_id")[row].as_py(),
            source=batch.column("source")[row].as_py(),
            reference=batch.column("reference")[row].as_py(),
            verifier=batch.column("verifier")[row].as_py(),
        )

    def read_blocks(self, groups: Sequence[Sequence[int] | np.ndarray]) -> Blocks:
        """Prompts side by side, for whoever looks at data as blocks: the linter and the report."""
        data = self.manifest.data
        blocks = Blocks.empty(len(groups), data.block_size, data.pad_token_id)
        found = [[self.read(int(index)) for index in group] for group in groups]
        for n, prompts in enumerate(found):
            ids = np.concatenate([prompt.input_ids_T for prompt in prompts])
            blocks.input_ids_NL[n, : len(ids)] = ids
            blocks.number_documents(n, np.array([len(prompt.input_ids_T) for prompt in prompts]))
        examples = [np.array([prompt.example_id for prompt in prompts], np.int64) for prompts in found]
        return blocks.with_examples(examples, [np.empty(0)] * len(found))
