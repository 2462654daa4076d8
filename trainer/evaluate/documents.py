"""Documents of a prepared split, one by one, whether its shards hold packed blocks or documents; and prompts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from finecut.dataprep import shard_files, tokenization
from finecut.dataprep.document_shards import DocumentReader
from finecut.dataprep.prompt_shards import PromptReader, PromptRow
from finecut.dataprep.shards import SplitReader
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError
from finecut.proto.run import artifacts
from finecut.trainer.evaluate.config import Examples

_Row = TypeVar("_Row")


@dataclasses.dataclass(frozen=True)
class Document:
    """Tokens and which of them are targets, both [T]."""

    example_id: str
    input_ids_T: np.ndarray
    loss_mask_T: np.ndarray


def read_documents(examples: Examples, tokenizer: Any) -> list[Document]:
    """Raises UserError where there are none, or they were prepared with another tokenizer than the model's."""
    manifest = artifacts.read(examples.folder)
    shard_files.check_kind(examples.folder, manifest, artifact_pb2.DataArtifact.DOCUMENTS)
    _check_tokenizer(examples.folder, manifest, tokenizer)
    read = _from_blocks if shard_files.is_packed(manifest) else _from_rows
    return _taken(examples, read(examples.folder, examples.split))


def read_prompts(examples: Examples, tokenizer: Any) -> list[PromptRow]:
    """As `read_documents`."""
    reader = PromptReader(examples.folder, examples.split)
    _check_tokenizer(examples.folder, reader.manifest, tokenizer)
    return _taken(examples, reader)


def prompt_ids(prompts: Sequence[PromptRow]) -> tuple[str, ...]:
    """Names of prompts in results, unique although records may be equal."""
    return tuple(f"{number}/{prompt.example_id & (2**64 - 1):016x}" for number, prompt in enumerate(prompts))


def _taken(examples: Examples, rows: Iterable[_Row]) -> list[_Row]:
    found = list(itertools.islice(rows, examples.max_examples))
    if not found:
        raise UserError(f"{examples.folder}: the {examples.split} split is empty, so there is nothing to measure")
    return found


def _check_tokenizer(folder: Path, manifest: artifact_pb2.Artifact, tokenizer: Any) -> None:
    if manifest.fingerprints.tokenizer != tokenization.fingerprint(tokenizer):
        raise UserError(
            f"{folder} was prepared with another tokenizer or chat template than the model has; set"
            " data_prep.tokenization.tokenizer to the model's and prepare it again"
        )


def _from_blocks(folder: Path, split: str) -> Iterator[Document]:
    reader = SplitReader(folder, split)
    for block in range(len(reader)):
        blocks = reader.read([block])
        document_L = blocks.document_id_NL[0]
        for number in range(int(document_L.max()) + 1):
            inside_L = document_L == number
            name = f"{block}.{number}"
            yield Document(name, blocks.input_ids_NL[0][inside_L], blocks.loss_mask_NL[0][inside_L])


def _from_rows(folder: Path, split: str) -> Iterator[Document]:
    reader = DocumentReader(folder, split)
    for number in range(len(reader)):
        blocks = reader.read_blocks([[number]])
        inside_L = blocks.document_id_NL[0] == 0
        yield Document(str(number), blocks.input_ids_NL[0][inside_L], blocks.loss_mask_NL[0][inside_L])
