"""Documents that the trainer will pack, seen as blocks by whoever looks at prepared data (the linter, the report)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from finecut.dataprep import shard_files
from finecut.dataprep.document_shards import DocumentReader
from finecut.dataprep.packing import best_fit_decreasing
from finecut.dataprep.prompt_shards import PromptReader
from finecut.dataprep.shards import BlockReader, Blocks, SplitReader
from finecut.proto import artifact_pb2

# Rows packed together for a look where the artifact does not say: prompts, which nobody packs.
_WINDOW = 1024


class DocumentBlocks:
    """Each document once, packed a window at a time in stored order; the trainer's own packing shuffles first.

    Its blocks are like the trainer's in how full they are, not in what stands together.
    """

    def __init__(self, documents: DocumentReader | PromptReader):
        self._documents = documents
        self.block_size: int = documents.manifest.data.block_size
        self._groups = list(self._pack(documents.manifest.data.window_documents or _WINDOW))

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self._groups)

    def read(self, indices: Sequence[int]) -> Blocks:
        """The blocks at these positions, in this order."""
        return self._documents.read_blocks([self._groups[int(index)] for index in indices])

    def _pack(self, window: int) -> Iterator[list[int]]:
        for start in range(0, len(self._documents), window):
            lengths = self._documents.lengths_N[start : start + window].tolist()
            for group in best_fit_decreasing(lengths, self.block_size, seed=start):
                yield [start + index for index in group]


def open_blocks(folder: Path, split: str, manifest: artifact_pb2.Artifact) -> BlockReader:
    """A split as blocks, whether it is packed already or not. The caller has checked the files, or wrote them."""
    if shard_files.is_packed(manifest):
        return SplitReader(folder, split, manifest=manifest)
    if manifest.data.kind == artifact_pb2.DataArtifact.PROMPTS:
        return DocumentBlocks(PromptReader(folder, split, manifest=manifest))
    return DocumentBlocks(DocumentReader(folder, split, manifest=manifest))
