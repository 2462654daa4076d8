"""Tensor parallelism, compilation, activation checkpointing, then FSDP2: one function applies them, in this order."""

from __future__ import annotations

from typing import Any

from torch.distributed.fsdp import FSDPModule, fully_shard

from finecut.proto.config import ConfigError
from finecut.proto.config.layout import Layout, ModelSizes, check
from finecut.trainer.config import Precision, TrainingConfig
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.parallel import gathering, mesh, tensor_parallel
from finecut.trainer.parallel import precision as number_formats
from finecut.trainer.parallel.activation_checkpointing import checkpoint_layers
from finecut.trainer.parallel.compilation import compile_layers
from finecut.trainer.parallel.process_group import Devices


def parallelize(model: Decoder, training: TrainingConfig, precision: Precision, devices: Devices) -> None:
    """Lays `model` (on the meta device, `model.layers` its units) out over the mesh of `devices`, in place.

    Afterwards gradients are *sums* over the ranks that hold different data, so the loss carries the whole
    normalisation. Raises UserError for a model that cannot be laid out like that.
    """
    number_formats.narrow_frozen(model, precision)
    if tensor := mesh.tensor_mesh(devices.mesh):
        tensor_parallel.split_model(model, tensor)
    # Before checkpointing, which then calls the compiled layer twice.
    if training.compile_layers:
        compile_layers(model.layers, devices.device)
    # Before FSDP2: its hooks must stay outside the recomputed function, or parameters would be gathered twice.
    checkpoint_layers(model.layers, training.activation_checkpointing)
    policy = number_formats.policy(precision, training.parallelism.narrow_gradients)
    settings: dict[str, Any] = {"mesh": mesh.data_mesh(devices.mesh), "mp_policy": policy}
    settings |= gathering.settings(model, precision, devices)
    model.keeps_gathered = settings.get("reshard_after_forward") is False
    model.adds_up_whole_gradients = gathering.adds_up_whole_gradients(model, devices)
    for layer in model.layers:
        fully_shard(layer, **settings)
    fully_shard(model, **settings)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo has no pre-multiplied sum, which a factor alone would ask for.
            module.set_force_sum_reduction_for_comms(True)


def check_layout(training: TrainingConfig, model: DecoderConfig | None, world_size: int) -> None:
    """Raises ConfigError, with all problems, when so many ranks cannot be laid out, or share the batch, as configured.

    `model` None: its sizes are not looked at.
    """
    parallelism = training.parallelism
    layout = Layout(
        world_size=world_size,
        shard_size=parallelism.shard_size,
        replicate_size=parallelism.replicate_size,
        tensor_parallel_size=parallelism.tensor_size,
        global_blocks=training.global_blocks,
        micro_blocks=training.micro_blocks,
    )
    sizes = None
    if model is not None:
        sizes = ModelSizes(
            model.num_heads,
            model.num_key_heads,
            model.intermediate_size,
            model.padded_vocabulary_size,
            model.experts.intermediate_size if model.experts else None,
        )
    problems = list(check(layout, sizes, "training"))
    if problems:
        raise ConfigError(problems)
