"""Applies rotary positions to queries and keys (Su et al., 2021).

Shapes: B rows, L tokens, H query heads, G key heads, K head size, F = K / 2 frequencies.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from finecut.trainer.ops import kernels
from finecut.trainer.ops.kernels import Kernels, Op


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Cosine and sine of each token's angles, [B, L, 1, F] in FP32.

    A dataclass and not a tuple: FSDP2 casts the tensors that it finds in a layer's arguments to the compute type, and
    it looks into tuples. In bfloat16 a position beyond 256 would be wrong.
    """

    cos: Tensor
    sin: Tensor


def rotate(q_BLHK: Tensor, k_BLGK: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Rotates each head's pairs (i, i + K / 2), Hugging Face's order, in FP32; returns the types that came in."""
    if kernels.takes(Op.ROTARY, q_BLHK, k_BLGK) is Kernels.TRITON:
        return _in_triton(q_BLHK, k_BLGK, rotation)
    return _rotated(q_BLHK, rotation), _rotated(k_BLGK, rotation)


def _rotated(x_BLHK: Tensor, rotation: Rotation) -> Tensor:
    low_BLHF, high_BLHF = x_BLHK.to(torch.promote_types(x_BLHK.dtype, torch.float32)).chunk(2, dim=-1)
    rotated = torch.cat(
        [
            low_BLHF * rotation.cos - high_BLHF * rotation.sin,
            high_BLHF * rotation.cos + low_BLHF * rotation.sin,
        ],
        dim=-1,
    )
    return rotated.to(x_BLHK.dtype)


def _in_triton(q_BLHK: Tensor, k_BLGK: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Liger's kernel writes over queries and keys; nothing else reads a projection's output before it is rotated."""
    from liger_kernel.ops.rope import LigerRopeFunction

    cos_BLF, sin_BLF = rotation.cos.squeeze(2), rotation.sin.squeeze(2)
    q_BHLK, k_BGLK = q_BLHK.transpose(1, 2), k_BLGK.transpose(1, 2)
    q_BHLK, k_BGLK = LigerRopeFunction.apply(q_BHLK, k_BGLK, cos_BLF, sin_BLF, None, 1, q_BLHK.shape[-1])
    return q_BHLK.transpose(1, 2), k_BGLK.transpose(1, 2)
