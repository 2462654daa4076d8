"""Opens a prepared data artifact for training and checks that it fits the model."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from finecut.dataprep import tokenization
from finecut.dataprep.shards import SplitReader
from finecut.proto.config import UserError
from finecut.trainer.config import TrainingConfig
from finecut.trainer.data.batches import Batches
from finecut.trainer.data.order import BlockOrder
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.huggingface import ModelSource
from finecut.trainer.parallel.process_group import Devices


@dataclasses.dataclass(frozen=True)
class SupervisedData:
    """The batches of a run.

    `evaluation` None: nothing was held out. `fingerprint` is the SHA-256 over the digests of the data's files.
    """

    train: Batches
    evaluation: Batches | None
    order: BlockOrder
    block_size: int
    total_steps: int
    tokenizer: Path
    tokenizer_fingerprint: str
    fingerprint: str


def open_data(
    folder: Path, source: ModelSource, decoder: DecoderConfig, training: TrainingConfig, devices: Devices
) -> SupervisedData:
    """Opens both splits. Raises UserError when the data is damaged, empty, or made for another model."""
    reader = SplitReader(folder, "train", verify=devices.is_main)
    manifest = reader.manifest
    if not len(reader):
        raise UserError(f"{folder}: the train split is empty; give data_prep more records")
    if reader.block_size > decoder.max_positions:
        raise UserError(
            f"{folder}: packing.block_size: {reader.block_size} is more than the {decoder.max_positions} positions of"
            f" {source.base}; use {decoder.max_positions} or less"
        )
    if manifest.data.vocabulary_size > decoder.vocabulary_size:
        raise UserError(
            f"{folder}: its tokenizer makes {manifest.data.vocabulary_size} ids and {source.base} has embeddings for"
            f" {decoder.vocabulary_size}; prepare with the tokenizer that belongs to the model"
        )
    order = BlockOrder.of(training, len(reader))
    held_out = next((split for split in manifest.data.splits if split.name == "evaluation" and split.block_count), None)
    evaluation = None
    if held_out is not None:
        evaluation_reader = SplitReader(folder, "evaluation", verify=False)  # the first reader checked every file
        evaluation = Batches(evaluation_reader, order, training.micro_blocks, devices)
    return SupervisedData(
        train=Batches(reader, order, training.micro_blocks, devices),
        evaluation=evaluation,
        order=order,
        block_size=reader.block_size,
        total_steps=order.total_steps(training.max_steps),
        tokenizer=_find_tokenizer(manifest.fingerprints.tokenizer, folder, source.tokenizer),
        tokenizer_fingerprint=manifest.fingerprints.tokenizer,
        fingerprint=hashlib.sha256("".join(file.sha256 for file in manifest.files).encode()).hexdigest(),
    )


def _find_tokenizer(prepared_with: str, data: Path, model: Path) -> Path:
    """The folder whose tokenizer and chat template the trained model gets: the model's own, or the data's.

    The model must be trained on the ids that it will be served with. Data prepared with another chat template brings
    its own; data prepared with another vocabulary cannot be used.
    """
    # Data of plain text needs no chat template.
    own = tokenization.load(model, needs_template=False)
    if tokenization.fingerprint(own) == prepared_with:
        return model
    if (data / tokenization.FOLDER).is_dir():
        brought = tokenization.load(data / tokenization.FOLDER, needs_template=False)
        is_whole = tokenization.fingerprint(brought) == prepared_with
        if is_whole and tokenization.vocabulary_fingerprint(brought) == tokenization.vocabulary_fingerprint(own):
            return data / tokenization.FOLDER
    raise UserError(
        f"{data} was prepared with another tokenizer (fingerprint {prepared_with[:12]}) than {model} has"
        f" ({tokenization.fingerprint(own)[:12]}); set data_prep.tokenization.tokenizer to the model and prepare again"
    )
