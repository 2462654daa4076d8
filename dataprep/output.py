"""From documents to the shards of each split: packed here, or left for the trainer to pack.

    source, document --split by content--> train, evaluation --source after source--> packed, or as they are -> shards

A block holds documents of one source only, so that the trainer can mix sources as the job says.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from finecut.dataprep.config import Kind, PrepareConfig
from finecut.dataprep.document_shards import DocumentWriter
from finecut.dataprep.documents import Document
from finecut.dataprep.packing import Packer
from finecut.dataprep.prompt_shards import PromptWriter
from finecut.dataprep.shards import ShardWriter
from finecut.dataprep.split import EVALUATION, TRAIN, Splitter, content_hash
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError


class Output:
    """From documents to shards: each split has its own.

    Attributes:
      num_documents, num_tokens: What was added.
    """

    def __init__(self, config: PrepareConfig, folder: Path, pad_token_id: int):
        self._seed = config.seed
        self._splitter: Splitter[tuple[str, Document]] = Splitter(
            config.evaluation_fraction, config.max_evaluation_documents
        )
        self._sources = config.sources
        self._splits = {
            name: _BySource(open_split(config, folder, name, pad_token_id), [source.name for source in config.sources])
            for name in (TRAIN, EVALUATION)
        }
        self.num_documents = 0
        self.num_tokens = 0

    def add(self, source: str, digest: bytes, document: Document) -> None:
        """Takes a document; all of a source come one after another.

        `digest` is `content_digest` of the first document made of its record.
        """
        self.num_documents += 1
        self.num_tokens += len(document)
        self._route(self._splitter.add(content_hash(digest, self._seed), (source, document)))

    def close(self) -> list[artifact_pb2.DataArtifact.Split]:
        """Writes what is held and returns the statistics, train first.

        Raises UserError where a source has a weight and nothing to train on.
        """
        self._route(self._splitter.flush())
        splits = [split.close() for split in self._splits.values()]
        filled = {part.source for part in splits[0].sources}
        for number, source in enumerate(self._sources):
            if filled and number not in filled and source.mixing and source.mixing[0] == "weight":
                raise UserError(
                    f"data_prep.sources[{number}].weight: {source.mixing[1]:g}, but {source.name!r} has no document to "
                    "train on; remove the source, or give it records"
                )
        return splits

    def _route(self, documents: Iterator[tuple[str, tuple[str, Document]]]) -> None:
        for split, (source, document) in documents:
            self._splits[split].add(source, document)


class SplitOutput(Protocol):
    """Takes documents; a row of its shards is a block, or a document.

    Attributes:
      num_rows: Rows written.
      statistics: Of what is written.
    """

    num_rows: int

    @property
    def statistics(self) -> artifact_pb2.DataArtifact.Split: ...

    def add(self, document: Document) -> None: ...

    def flush(self) -> None:
        """Writes what waits to be packed, so that nothing that follows stands in a row with it."""

    def close(self) -> artifact_pb2.DataArtifact.Split:
        """Finishes the files and returns the split's statistics."""


def open_split(config: PrepareConfig, folder: Path, split: str, pad_token_id: int) -> SplitOutput:
    """The output that `config.packing` asks for. Raises UserError where a shard cannot hold a block."""
    block_size, has_pairs = config.packing.block_size, config.kind is Kind.PAIRS
    if config.kind is Kind.PROMPTS:
        return _UnpackedOutput(PromptWriter(folder, split, block_size, config.max_shard_bytes))
    if config.packing.on_the_fly:
        return _UnpackedOutput(DocumentWriter(folder, split, block_size, config.max_shard_bytes, has_pairs))
    writer = ShardWriter(folder, split, block_size, pad_token_id, config.max_shard_bytes, has_pairs)
    return _PackedOutput(Packer(config.packing, config.seed), writer)


class _BySource:
    """Keeps the rows of one source together and notes where they stand.

    Documents of an earlier source that come late, as those that the splitter held and gives back, wait in memory until
    the end; the splitter bounds how many there are.
    """

    def __init__(self, output: SplitOutput, sources: Sequence[str]):
        self._output = output
        self._numbers = {name: number for number, name in enumerate(sources)}
        self._late: dict[str, list[Document]] = {}  # by source; a key for each that has begun
        self._current: str | None = None
        self._before = (0, 0, 0, 0)  # what there was when it began
        self._ranges: list[artifact_pb2.DataArtifact.Split.SourceRange] = []

    def add(self, source: str, document: Document) -> None:
        if source == self._current:
            self._output.add(document)
        elif source in self._late:
            self._late[source].append(document)
        else:
            self._late[source] = []
            self._begin(source)
            self._output.add(document)

    def close(self) -> artifact_pb2.DataArtifact.Split:
        for source, documents in self._late.items():
            if documents:
                self._begin(source)
                for document in documents:
                    self._output.add(document)
        self._end()
        split = self._output.close()
        split.sources.extend(self._ranges)
        return split

    def _begin(self, source: str) -> None:
        self._end()
        self._current = source
        self._before = self._counts()

    def _end(self) -> None:
        if self._current is None:
            return
        self._output.flush()
        counts = zip(self._counts(), self._before, strict=True)
        rows, documents, tokens, trained = (now - before for now, before in counts)
        self._ranges.append(
            artifact_pb2.DataArtifact.Split.SourceRange(
                source=self._numbers[self._current],
                row_count=rows,
                document_count=documents,
                token_count=tokens,
                trained_token_count=trained,
            )
        )

    def _counts(self) -> tuple[int, int, int, int]:
        found = self._output.statistics
        return self._output.num_rows, found.document_count, found.token_count, found.trained_token_count


class _UnpackedOutput:
    def __init__(self, writer: DocumentWriter | PromptWriter):
        self._writer = writer
        self.num_rows = 0

    @property
    def statistics(self) -> artifact_pb2.DataArtifact.Split:
        return self._writer.statistics

    def add(self, document: Document) -> None:
        self._writer.add(document)
        self.num_rows += 1

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> artifact_pb2.DataArtifact.Split:
        return self._writer.close()


class _PackedOutput:
    def __init__(self, packer: Packer, writer: ShardWriter):
        self._packer = packer
        self._writer = writer
        self.num_rows = 0

    @property
    def statistics(self) -> artifact_pb2.DataArtifact.Split:
        return self._writer.statistics

    def add(self, document: Document) -> None:
        self._write(self._packer.add(document))

    def flush(self) -> None:
        self._write(self._packer.flush())

    def close(self) -> artifact_pb2.DataArtifact.Split:
        self.flush()
        return self._writer.close()

    def _write(self, blocks: Iterator[list[Document]]) -> None:
        for block in blocks:
            self._writer.add(block)
            self.num_rows += 1
