"""FlashAttention 4 over packed documents, for Hopper GPUs, as operators that torch.compile and checkpointing know.

Shapes: T tokens of all documents, H query heads, G key heads, K head size, N documents.

The library's own autograd function is opaque to torch.compile; two custom operators, forward and backward, are not: a
compiled layer stays one graph, and selective checkpointing can keep the forward's result by name. They call the
library's inner functions, which the CUDA lock pins.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

_TYPES = (torch.bfloat16, torch.float16)
_LARGEST_HEAD = 128  # checked and timed; beyond it FlexAttention is used
_HEAD_MULTIPLE = 8  # 16 bytes


# Set by `prepare`: torch.compile cannot trace an import, and would break a layer in two over it.
_is_ready = False


def prepare(device: torch.device) -> bool:
    """Imports the library where the device is a Hopper GPU; returns whether it can be used from now on."""
    global _is_ready
    _is_ready = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9 and _is_importable()
    return _is_ready


@functools.cache
def _is_importable() -> bool:
    try:
        if importlib.util.find_spec("flash_attn.cute") is None:
            return False
        import flash_attn.cute.interface  # noqa: F401
    except (ImportError, OSError, RuntimeError):  # another FlashAttention, or a CUDA that it does not fit
        return False
    return True


def fits(q_BLHK: Tensor) -> bool:
    """Whether these queries can be attended with it, once it is prepared: 16-bit, head size."""
    head_size = q_BLHK.shape[-1]
    if not (_is_ready and q_BLHK.is_cuda and q_BLHK.dtype in _TYPES):
        return False
    return head_size <= _LARGEST_HEAD and head_size % _HEAD_MULTIPLE == 0


def attend(
    q_BLHK: Tensor,
    k_BLGK: Tensor,
    v_BLGK: Tensor,
    boundary_N1: Tensor,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> Tensor:
    """Causal attention within documents that begin at `boundary_N1` (int32, the last one is T) of the flat batch."""
    longest = q_BLHK.shape[1]  # only bounds the documents' lengths; they never cross rows
    q_THK, k_TGK, v_TGK = (x.flatten(0, 1) for x in (q_BLHK, k_BLGK, v_BLGK))
    out_THK, _ = _forward(q_THK, k_TGK, v_TGK, boundary_N1, longest, scale, window or 0, soft_cap or 0.0)
    return out_THK.view(q_BLHK.shape)


@torch.library.custom_op("finecut::flash_attention", mutates_args=(), device_types="cuda")
def _forward(
    q_THK: Tensor,
    k_TGK: Tensor,
    v_TGK: Tensor,
    boundary_N1: Tensor,
    longest: int,
    scale: float,
    window: int,
    soft_cap: float,
) -> tuple[Tensor, Tensor]:
    """Result, and log-sum-exp [H, T]. `window` and `soft_cap` 0: none."""
    from flash_attn.cute.interface import _flash_attn_fwd

    result = _flash_attn_fwd(
        q_THK,
        k_TGK,
        v_TGK,
        cu_seqlens_q=boundary_N1,
        cu_seqlens_k=boundary_N1,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scale,
        causal=True,
        window_size_left=window - 1 if window else None,
        window_size_right=0 if window else None,
        softcap=soft_cap or None,
        return_lse=True,
    )
    return result[0], result[1]


@_forward.register_fake
def _(q_THK, k_TGK, v_TGK, boundary_N1, longest, scale, window, soft_cap):  # type: ignore[no-untyped-def]
    out_THK = q_THK.new_empty(q_THK.shape)
    return out_THK, q_THK.new_empty((q_THK.shape[1], q_THK.shape[0]), dtype=torch.float32)


@torch.library.custom_op("finecut::flash_attention_backward", mutates_args=(), device_types="cuda")
def _backward(
    out_grad_THK: Tensor,
    q_THK: Tensor,
    k_TGK: Tensor,
    v_TGK: Tensor,
    out_THK: Tensor,
    lse_HT: Tensor,
    boundary_N1: Tensor,
    longest: int,
    scale: float,
    window: int,
    soft_cap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    q_grad_THK, k_grad_TGK, v_grad_TGK = _flash_attn_bwd(
        q_THK,
        k_TGK,
        v_TGK,
        out_THK,
        out_grad_THK.contiguous(),
        lse_HT,
        softmax_scale=scale,
        causal=True,
        softcap=soft_cap,
        window_size_left=window - 1 if window else None,
        window_size_right=0 if window else None,
        cu_seqlens_q=boundary_N1,
        cu_seqlens_k=boundary_N1,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )[:3]
    return q_grad_THK, k_grad_TGK, v_grad_TGK


@_backward.register_fake
def _(out_grad_THK, q_THK, k_TGK, v_TGK, *rest):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (q_THK, k_TGK, v_TGK))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_THK, k_TGK, v_TGK, boundary_N1, *ctx.settings = inputs
    ctx.save_for_backward(q_THK, k_TGK, v_TGK, *output, boundary_N1)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, out_grad_THK: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_backward(out_grad_THK, *ctx.saved_tensors, *ctx.settings), *(None,) * 5


_forward.register_autograd(_gradients, setup_context=_keep)
