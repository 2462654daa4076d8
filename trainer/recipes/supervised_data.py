"""Opens a prepared data artifact for training and checks that it fits the model."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from finecut.dataprep import shard_files, tokenization
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError
from finecut.proto.run import artifacts
from finecut.trainer.config import TrainingConfig
from finecut.trainer.data.batches import Batches, HeldOut
from finecut.trainer.data.order import Order
from finecut.trainer.data.source_rows import Sources
from finecut.trainer.data.splits import open_held_out, open_train
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.huggingface import ModelSource
from finecut.trainer.parallel.process_group import Devices


@dataclasses.dataclass(frozen=True)
class SupervisedData:
    """The batches of a run.

    `evaluation` None: nothing was held out. `notes` are lines for people.
    `fingerprint` is the SHA-256 over the digests of the data's files.
    """

    train: Batches
    evaluation: HeldOut | None
    order: Order
    sources: Sources
    notes: tuple[str, ...]
    block_size: int
    total_steps: int
    tokenizer: Path
    tokenizer_fingerprint: str
    fingerprint: str

    def close(self) -> None:
        """Ends the threads that load ahead."""
        self.train.close()


def open_data(
    folder: Path,
    source: ModelSource,
    decoder: DecoderConfig,
    training: TrainingConfig,
    devices: Devices,
    added_tokens: Sequence[str] = (),
    kind: artifact_pb2.DataArtifact.Kind = artifact_pb2.DataArtifact.DOCUMENTS,
) -> SupervisedData:
    """Opens both splits; `added_tokens` are those that the model's tokenizer gains, `kind` is what they must hold.

    Raises UserError when the data is damaged, empty, or made for another model.
    """
    manifest = artifacts.read(folder)
    if manifest.WhichOneof("content") == "data":
        shard_files.check_kind(folder, manifest, kind)
    train = open_train(folder, manifest, training, verify=devices.is_main)
    if manifest.data.block_size > decoder.max_positions:
        raise UserError(
            f"{folder}: packing.block_size: {manifest.data.block_size} is more than the {decoder.max_positions}"
            f" positions of {source.base}; use {decoder.max_positions} or less"
        )
    if manifest.data.vocabulary_size > decoder.vocabulary_size:
        if events := manifest.data.semantic_id_count:
            tokens = manifest.data.vocabulary_size - events
            raise UserError(
                f"{folder}: its event sequences have {events} ids after {tokens} tokens, and {source.base} has"
                f" embeddings for {decoder.vocabulary_size} together; set model.semantic_id_count to {events}"
            )
        raise UserError(
            f"{folder}: its tokenizer makes {manifest.data.vocabulary_size} ids and {source.base} has embeddings for"
            f" {decoder.vocabulary_size}; prepare with the tokenizer that belongs to the model"
        )
    total_steps = train.order.total_steps(training.max_steps)
    evaluation = None
    if any(split.name == "evaluation" and split.document_count for split in manifest.data.splits):
        reader, blocks = open_held_out(folder, manifest, training.seed)
        evaluation = HeldOut(reader, blocks, training.micro_blocks, devices)
    tokenizer = source.tokenizer
    if devices.is_main:  # to import what loads a tokenizer takes seconds
        tokenizer = find_tokenizer(manifest.fingerprints.tokenizer, folder, source.tokenizer, added_tokens)
    return SupervisedData(
        train=Batches(train.reader, train.order, train.sources, training.micro_blocks, devices, total_steps),
        evaluation=evaluation,
        order=train.order,
        sources=train.sources,
        notes=tuple(train.notes(total_steps)),
        block_size=manifest.data.block_size,
        total_steps=total_steps,
        tokenizer=devices.from_main(tokenizer),
        tokenizer_fingerprint=manifest.fingerprints.tokenizer,
        fingerprint=fingerprint_of(manifest),
    )


def fingerprint_of(manifest: artifact_pb2.Artifact) -> str:
    """What decides the blocks: the files, how sources are mixed, and how documents that are not packed yet will be."""
    parts = [file.sha256 for file in manifest.files]
    for source in manifest.data.sources:
        if kind := source.WhichOneof("mixing"):
            parts.append(f"{source.name}/{kind}/{getattr(source, kind)!r}")
    if not shard_files.is_packed(manifest):
        parts.append(f"{manifest.data.block_size}/{manifest.data.window_documents}")
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def find_tokenizer(prepared_with: str, data: Path, model: Path, added_tokens: Sequence[str]) -> Path:
    """The folder whose tokenizer and chat template the trained model gets: the model's own, or the data's.

    The model must be trained on the ids that it will be served with. Data prepared with another chat template brings
    its own, as does data prepared with added tokens; data prepared with another vocabulary cannot be used.
    """
    # Data of plain text needs no chat template.
    own = tokenization.load(model, needs_template=False, added_tokens=added_tokens)
    if tokenization.fingerprint(own) == prepared_with and not added_tokens:
        return model
    if (data / tokenization.FOLDER).is_dir():
        brought = tokenization.load(data / tokenization.FOLDER, needs_template=False)
        is_whole = tokenization.fingerprint(brought) == prepared_with
        if is_whole and tokenization.vocabulary_fingerprint(brought) == tokenization.vocabulary_fingerprint(own):
            return data / tokenization.FOLDER
    if added_tokens:
        raise UserError(
            f"{data} was prepared with another tokenizer than {model} with model.added_tokens; set"
            " data_prep.tokenization.added_tokens to the same tokens in the same order and prepare again"
        )
    raise UserError(
        f"{data} was prepared with another tokenizer (fingerprint {prepared_with[:12]}) than {model} has"
        f" ({tokenization.fingerprint(own)[:12]}); set data_prep.tokenization.tokenizer to the model and prepare again"
    )
