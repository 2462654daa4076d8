"""Norms. Shapes: ... any, D the size that is normalised."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x_D: Tensor, weight_D: Tensor, epsilon: float, plus_one: bool = False) -> Tensor:
    """Root-mean-square norm over the last dimension (Zhang and Sennrich, 2019), in FP32 inside; returns x's type.

    Args:
      x_D: [..., D].
      epsilon: added to the mean of squares.
      plus_one: multiply by 1 + weight, in FP32 and before the cast, as Gemma does; else by weight, after it, as Llama.
    """
    wide_D = x_D.to(torch.promote_types(x_D.dtype, torch.float32))
    wide_D = wide_D * torch.rsqrt(wide_D.square().mean(dim=-1, keepdim=True) + epsilon)
    if plus_one:
        return (wide_D * (1 + weight_D.to(wide_D.dtype))).to(x_D.dtype)
    return weight_D * wide_D.to(x_D.dtype)
