"""Models beside the trained one, which do not learn: references and teachers. Sharded over the same ranks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from finecut.proto.config import UserError
from finecut.trainer.config import Precision, StagePlace, TrainingConfig
from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import ModelSource, locate_model, materialize
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.parallel.sharding import check_layout, parallelize
from finecut.trainer.planning.workload import Frozen
from finecut.trainer.recipes import vocabulary

if TYPE_CHECKING:
    from finecut.trainer.recipes.supervised import Recipe, Setup


def load_frozen(
    source: ModelSource,
    config: DecoderConfig,
    training: TrainingConfig,
    precision: Precision,
    devices: Devices,
    output_head: OutputHead | None = None,
) -> Decoder:
    """The decoder, an adapter of its source merged, in evaluation mode. Collective."""
    check_layout(training, config, devices.world_size)
    with torch.device("meta"):
        model = Decoder(config, training.loss_chunk_tokens, output_head)
    model.requires_grad_(False)
    parallelize(model, training, precision, devices)
    materialize(model, source, devices.device, training.seed)
    return model.eval()


def load_role(path: Path, role: str, training: TrainingConfig, setup: Setup) -> Decoder:
    """Another model than the trained one, which must have the same vocabulary. Raises UserError where it has not."""
    source, config = checked_role(path, role, setup)
    return load_frozen(source, config, training, setup.precision, setup.devices)


def checked_role(path: Path, role: str, setup: Setup) -> tuple[ModelSource, DecoderConfig]:
    """Where it is and what it is. Raises UserError where its vocabulary or its positions are not enough."""
    source = locate_model(path)
    config = DecoderConfig.from_folder(source.base)
    vocabulary.check(role, source, config, setup.decoder_config, setup.data.tokenizer)
    if setup.data.block_size > config.max_positions:
        raise UserError(
            f"{role}: {path} has {config.max_positions:,} positions, and blocks have {setup.data.block_size:,} tokens;"
            " lower packing.block_size"
        )
    return source, config


def frozen_models(
    recipe: Recipe, place: StagePlace, source: ModelSource, decoder_config: DecoderConfig
) -> list[Frozen]:
    """Models that stand beside the trained one: those that the job names, and copies of the policy."""
    # Of the built-in recipes one lets go of a model, one keeps copies; those of users need not say anything.
    gone = getattr(recipe, "roles_let_go", ())
    named = [
        Frozen(role, DecoderConfig.from_folder(locate_model(path).base))
        for role, path in place.roles.items()
        if role not in gone
    ]
    copies = getattr(recipe, "copies_of_policy", lambda source: 0)(source)
    return [*named, *([Frozen("copy", decoder_config)] * copies)]
