"""From the documents of one split to its shards: packed here, or left for the trainer to pack."""

from pathlib import Path
from typing import Protocol

from finecut.dataprep.config import PrepareConfig
from finecut.dataprep.document_shards import DocumentWriter
from finecut.dataprep.documents import Document
from finecut.dataprep.packing import Packer
from finecut.dataprep.shards import ShardWriter
from finecut.proto import artifact_pb2


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
