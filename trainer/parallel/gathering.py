"""When FSDP2 gathers parameters; on one rank, where there is nobody to share them with, as seldom as it can."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from finecut.trainer.config import Precision
from finecut.trainer.parallel import precision as number_formats
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.planning import memory


def settings(model: nn.Module, precision: Precision, devices: Devices) -> dict[str, Any]:
    """Arguments of `fully_shard` for a model on the meta device.

    Alone, a rank holds frozen parameters as they are, and keeps trained ones gathered throughout a step where they are
    small beside the GPU: to gather them again would copy the same numbers.
    """
    if devices.world_size > 1:
        return {}
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    itemsize = number_formats.dtype_of(precision).itemsize
    keeps = memory.keeps_gathered(trained, itemsize, _memory_of(devices.device))
    return {"ignored_params": frozen, "reshard_after_forward": not keeps}


def adds_up_whole_gradients(model: nn.Module, devices: Devices) -> bool:
    """Whether ranks exchange gradients once a step only, which takes room for those of the whole model on each.

    Where that is much of a GPU, they exchange them after every micro-batch, and keep their own shards.
    """
    if devices.device.type != "cuda" or devices.world_size == 1:
        return True
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return memory.adds_up_whole_gradients(trained, _memory_of(devices.device))


def _memory_of(device: torch.device) -> int:
    """Bytes of a GPU; a CPU gains nothing from what stays gathered."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def begin_micro_batch(model: FSDPModule, is_last: bool) -> None:
    """Says whether the backward pass that comes is the last one before the optimizer's step.

    Until then each rank adds up its own gradients (or its shards, see `adds_up_whole_gradients`), and what stays
    gathered after the forward pass stays so after the backward pass.
    """
    if getattr(model, "adds_up_whole_gradients", True):
        model.set_requires_gradient_sync(is_last)
    else:
        model.set_requires_all_reduce(is_last)
    model.set_is_last_backward(is_last)
    if getattr(model, "keeps_gathered", False):
        model.set_reshard_after_backward(is_last)


def reshard(model: FSDPModule) -> None:
    """Lets go of what was gathered for backward passes that do not come; parameters read as they are stored again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
