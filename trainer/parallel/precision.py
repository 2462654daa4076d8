"""Number formats: what AUTO means on a device, and the mixed precision that FSDP2 applies."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from finecut.trainer.config import Precision

_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


# Families whose activations outgrow FP16's largest number, 65,504, whatever the loss scale.
OVERFLOWS_FP16 = frozenset({"gemma3_text"})


def resolve(precision: Precision, device: torch.device, family: str) -> Precision:
    """What a supervised recipe trains a model of this family in.

    AUTO is FP32 on a CPU; on a GPU FP16 with loss scaling, or BF16 for a family that overflows FP16.
    """
    if precision is not Precision.AUTO:
        return precision
    if device.type == "cpu":
        return Precision.FP32
    return Precision.BF16 if family in OVERFLOWS_FP16 else Precision.FP16


def remarks(asked: Precision, taken: Precision, family: str) -> list[str]:
    """What a user should know of the choice that AUTO made."""
    if asked is Precision.AUTO and taken is Precision.BF16:
        return [f"precision AUTO is BF16 here: activations of {family} overflow FP16"]
    return []


def dtype_of(precision: Precision) -> torch.dtype:
    """The type that a resolved precision computes in."""
    return _DTYPES[precision]


def policy(precision: Precision, narrow_gradients: bool = False) -> MixedPrecisionPolicy:
    """Computes in `precision`; parameters and optimizer stay FP32, and so does the sum of gradients unless narrow."""
    reduce_dtype = torch.bfloat16 if narrow_gradients else torch.float32
    return MixedPrecisionPolicy(param_dtype=_DTYPES[precision], reduce_dtype=reduce_dtype)


def narrow_frozen(model: nn.Module, precision: Precision) -> None:
    """Keeps frozen parameters in the type that they are computed in; before they are sharded.

    A model with adapters then takes half the memory, and its weights are not cast anew in each pass. The numbers are
    the same: they would be rounded to this type before they are used.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(_DTYPES[precision])
