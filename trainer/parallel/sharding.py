"""Compilation, activation checkpointing, FSDP2: one function applies them, in this order."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.checkpoint import checkpoint

from finecut.proto.config import UserError
from finecut.trainer.config import Precision, TrainingConfig
from finecut.trainer.parallel import gathering
from finecut.trainer.parallel import precision as number_formats
from finecut.trainer.parallel.compilation import compile_layers
from finecut.trainer.parallel.process_group import Devices


def parallelize(model: nn.Module, training: TrainingConfig, precision: Precision, devices: Devices) -> None:
    """Shards `model` (on the meta device, `model.layers` its units) over all ranks, in place.

    Afterwards gradients are *sums* over ranks, so the loss carries the whole normalisation. Raises UserError when
    the layout does not fit the number of ranks.
    """
    check_layout(training, devices.world_size)
    # Before checkpointing, which then calls the compiled layer twice; what it drops is the same.
    if training.compile_layers:
        compile_layers(model.layers, devices.device)
    # Before FSDP2: its hooks must stay outside the recomputed function, or parameters would be gathered twice.
    if training.recompute_activations:
        for layer in model.layers:
            _recompute(layer)
    settings: dict[str, Any] = {"mesh": devices.mesh, "mp_policy": number_formats.policy(precision)}
    settings |= gathering.settings(model, precision, devices)
    model.keeps_gathered = settings.get("reshard_after_forward") is False
    for layer in model.layers:
        fully_shard(layer, **settings)
    fully_shard(model, **settings)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo has no pre-multiplied sum, which a factor alone would ask for.
            module.set_force_sum_reduction_for_comms(True)


def check_layout(training: TrainingConfig, world_size: int) -> None:
    """Raises UserError when `world_size` ranks cannot be laid out, or cannot share the batch, as configured."""
    if training.shard_size not in (None, world_size):
        raise UserError(
            f"training.parallelism.shard_size: {training.shard_size} is not the number of ranks, {world_size};"
            " leave it unset, or start as many ranks"
        )
    unit = training.micro_blocks * world_size
    if training.global_blocks % unit:
        raise UserError(
            f"training.batch.global_blocks: {training.global_blocks} is not a multiple of {unit}"
            f" (micro_blocks {training.micro_blocks} on each of {world_size} ranks); use {_nearest(training, unit)}"
        )


def _nearest(training: TrainingConfig, unit: int) -> int:
    return max(unit, round(training.global_blocks / unit) * unit)


def _recompute(layer: nn.Module) -> None:
    """Makes the layer drop its activations and compute them again in the backward pass; names stay as they are."""
    forward = layer.forward

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    layer.forward = recomputed  # type: ignore[method-assign]
