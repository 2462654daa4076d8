"""Norms. Shapes: ... any, D the size that is normalised."""

from __future__ import annotations

import torch
from torch import Tensor

from finecut.trainer.ops import kernels
from finecut.trainer.ops.kernels import Kernels, Op


def rms_norm(x_D: Tensor, weight_D: Tensor, epsilon: float, plus_one: bool = False) -> Tensor:
    """Root-mean-square norm over the last dimension (Zhang and Sennrich, 2019), in FP32 inside; returns x's type.

    Args:
      x_D: [..., D].
      epsilon: added to the mean of squares.
      plus_one: multiply by 1 + weight, in FP32 and before the cast, as Gemma does; else by weight, after it, as Llama.
    """
    match kernels.takes(Op.RMS_NORM, x_D, weight_D):
        case Kernels.TRITON:
            return _in_triton(x_D, weight_D, epsilon, plus_one)
        case Kernels.APEX:
            return _in_apex(x_D, weight_D, epsilon, plus_one)
    wide_D = x_D.to(torch.promote_types(x_D.dtype, torch.float32))
    wide_D = wide_D * torch.rsqrt(wide_D.square().mean(dim=-1, keepdim=True) + epsilon)
    if plus_one:
        return (wide_D * (1 + weight_D.to(wide_D.dtype))).to(x_D.dtype)
    return weight_D * wide_D.to(x_D.dtype)


def _in_triton(x_D: Tensor, weight_D: Tensor, epsilon: float, plus_one: bool) -> Tensor:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    offset, casting = (1.0, "gemma") if plus_one else (0.0, "llama")
    # Not in place: the gradient that comes in may be needed by the residual around the norm.
    return LigerRMSNormFunction.apply(x_D, weight_D, epsilon, offset, casting, False, None)


def _in_apex(x_D: Tensor, weight_D: Tensor, epsilon: float, plus_one: bool) -> Tensor:
    from apex.normalization.fused_layer_norm import fused_rms_norm_affine, mixed_dtype_fused_rms_norm_affine

    if plus_one:
        # 1 + weight has to stay FP32: in 16 bits the 1 would swallow small weights.
        normed_D = mixed_dtype_fused_rms_norm_affine(x_D.float(), 1 + weight_D.float(), weight_D.shape, epsilon)
        return normed_D.to(x_D.dtype)
    return fused_rms_norm_affine(x_D, weight_D.to(x_D.dtype), weight_D.shape, epsilon)
