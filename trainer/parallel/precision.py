"""Number formats: what AUTO means on a device, and the mixed precision that FSDP2 applies."""

from __future__ import annotations

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from finecut.trainer.config import Precision

_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def resolve(precision: Precision, device: torch.device) -> Precision:
    """What a supervised recipe trains in: AUTO is FP32 on a CPU and FP16 (with loss scaling) on a GPU."""
    if precision is not Precision.AUTO:
        return precision
    return Precision.FP32 if device.type == "cpu" else Precision.FP16


def policy(precision: Precision) -> MixedPrecisionPolicy:
    """Computes in `precision`; parameters, the reduction of gradients and the optimizer stay FP32."""
    return MixedPrecisionPolicy(param_dtype=_DTYPES[precision], reduce_dtype=torch.float32)
