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
    tokenizer_fingerprint: str
    fingerprint: str


def open_data(
    folder: Path, model_folder: Path, decoder: DecoderConfig, training: TrainingConfig, devices: Devices
) -> SupervisedData:
    """Opens both splits. Raises UserError when the data is damaged, empty, or made for another model."""
    reader = SplitReader(folder, "train", verify=devices.is_main)
    manifest = reader.manifest
    if not len(reader):
        raise UserError(f"{folder}: the train split is empty; give data_prep more records")
    if reader.block_size > decoder.max_positions:
        raise UserError(
            f"{folder}: packing.block_size: {reader.block_size} is more than the {decoder.max_positions} positions of"
            f" {model_folder}; use {decoder.max_positions} or less"
        )
    if manifest.data.vocabulary_size > decoder.vocabulary_size:
        raise UserError(
            f"{folder}: its tokenizer makes {manifest.data.vocabulary_size} ids and {model_folder} has embeddings for"
            f" {decoder.vocabulary_size}; prepare with the tokenizer that belongs to the model"
        )
    _check_tokenizer(manifest.fingerprints.tokenizer, folder, model_folder)
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
        tokenizer_fingerprint=manifest.fingerprints.tokenizer,
        fingerprint=hashlib.sha256("".join(file.sha256 for file in manifest.files).encode()).hexdigest(),
    )


def _check_tokenizer(prepared_with: str, folder: Path, model_folder: Path) -> None:
    """The model must be trained on the ids that it will be served with."""
    own = tokenization.fingerprint(tokenization.load(model_folder, needs_template=False))
    if own != prepared_with:
        raise UserError(
            f"{folder} was prepared with another tokenizer or chat template (fingerprint {prepared_with[:12]}) than"
            f" {model_folder} has ({own[:12]}); set data_prep.tokenization.tokenizer to the model and prepare again"
            " (to train with another template, put it into the model's folder as chat_template.jinja)"
        )
