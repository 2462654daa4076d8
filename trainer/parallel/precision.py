"""Number formats: what AUTO means on a device, and the mixed precision that FSDP2 applies."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from finecut.trainer.config import Precision

_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def resolve(precision: Precision, device: torch.device) -> Precision:
    """What a supervised recipe trains in: AUTO is FP32 on a CPU and FP16 (with loss scaling) on a GPU."""
    if precision is not Precision.AUTO:
        return precision
    return Precision.FP32 if device.type == "cpu" else Precision.FP16


def dtype_of(precision: Precision) -> torch.dtype:
    """The type that a resolved precision computes in."""
    return _DTYPES[precision]


def policy(precision: Precision) -> MixedPrecisionPolicy:
    """Computes in `precision`; parameters, the reduction of gradients and the optimizer stay FP32."""
    return MixedPrecisionPolicy(param_dtype=_DTYPES[precision], reduce_dtype=torch.float32)


def narrow_frozen(model: nn.Module, precision: Precision) -> None:
    """Keeps frozen parameters (on the meta device) in the type that they are computed in.

    A model with adapters then takes half the memory, and its weights are not cast anew in each pass. The numbers are
    the same: they would be rounded to this type before they are used.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad:
            assert parameter.is_meta
            parameter.data = parameter.data.to(_DTYPES[precision])
