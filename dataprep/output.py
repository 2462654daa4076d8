"""From documents to the shards of each split: packed here, or left for the trainer to pack."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from finecut.dataprep.config import PrepareConfig
from finecut.dataprep.document_shards import DocumentWriter
from finecut.dataprep.documents import Document
from finecut.dataprep.packing import Packer
from finecut.dataprep.shards import ShardWriter
from finecut.dataprep.split import EVALUATION, TRAIN, Splitter, content_hash
from finecut.proto import artifact_pb2


class Output:
    """From documents to shards: each split has its own.

    Attributes:
      num_documents, num_tokens: What was added.
    """

    def __init__(self, config: PrepareConfig, folder: Path, pad_token_id: int):
        self._seed = config.seed
        self._splitter = Splitter(config.evaluation_fraction, config.max_evaluation_documents)
        self._splits = {name: open_split(config, folder, name, pad_token_id) for name in (TRAIN, EVALUATION)}
        self.num_documents = 0
        self.num_tokens = 0

    def add(self, source: str, digest: bytes, document: Document) -> None:
        """Takes a document of this source; `digest` is `content_digest` of the first document made of its record."""
        self.num_documents += 1
        self.num_tokens += len(document)
        self._route(self._splitter.add(content_hash(digest, self._seed), document))

    def close(self) -> list[artifact_pb2.DataArtifact.Split]:
        """Writes what is held and returns the statistics, train first."""
        self._route(self._splitter.flush())
        return [split.close() for split in self._splits.values()]

    def _route(self, documents: Iterator[tuple[str, Document]]) -> None:
        for name, document in documents:
            self._splits[name].add(document)


class SplitOutput(Protocol):
    """Takes documents; `close` writes what is held and returns the split's statistics."""

    def add(self, document: Document) -> None: ...

    def close(self) -> artifact_pb2.DataArtifact.Split: ...


def open_split(config: PrepareConfig, folder: Path, split: str, pad_token_id: int) -> SplitOutput:
    """The output that `config.packing` asks for. Raises UserError where a shard cannot hold a block."""
    block_size = config.packing.block_size
    if config.packing.on_the_fly:
        return DocumentWriter(folder, split, block_size, config.max_shard_bytes)
    writer = ShardWriter(folder, split, block_size, pad_token_id, config.max_shard_bytes)
    return _PackedOutput(Packer(config.packing, config.seed), writer)


class _PackedOutput:
    def __init__(self, packer: Packer, writer: ShardWriter):
        self._packer = packer
        self._writer = writer

    def add(self, document: Document) -> None:
        for block in self._packer.add(document):
            self._writer.add(block)

    def close(self) -> artifact_pb2.DataArtifact.Split:
        for block in self._packer.flush():
            self._writer.add(block)
        return self._writer.close()
