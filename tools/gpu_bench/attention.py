"""Attention over packed documents: error against FP32, and TFLOP/s."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from finecut.tools.gpu_bench.timing import milliseconds
from finecut.trainer.ops import attention, kernels
from finecut.trainer.ops.document_layout import DocumentLayout
from finecut.trainer.ops.kernels import Kernels


def _layout(lengths: list[int]) -> DocumentLayout:
    """One row; negative lengths are padding."""
    documents = [-1 if n < 0 else i for i, n in enumerate(lengths) for _ in range(abs(n))]
    positions = [0 if n < 0 else p for n in lengths for p in range(abs(n))]
    return DocumentLayout.of(torch.tensor([documents], device="cuda"), torch.tensor([positions], device="cuda"))


def _inputs(tokens: int, heads: int, key_heads: int, size: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(1, tokens, h, size) for h in (heads, key_heads, key_heads, heads)]
    return [torch.randn(s, generator=generator, device="cuda").to(dtype).requires_grad_() for s in shapes]


def errors(
    choice: Kernels, lengths: list[int], size: int, dtype: torch.dtype, window: int | None, soft_cap: float | None
) -> list[float]:
    """Relative errors of the output and the three gradients against the CPU's path in FP32, on the GPU."""
    kernels.use(choice, torch.device("cuda"))
    layout = _layout(lengths)
    q, k, v, direction = _inputs(sum(map(abs, lengths)), 4, 2, size, dtype)
    direction = direction * (~layout.is_padding_BL)[:, :, None, None]
    got = attention.attend(q, k, v, layout, window=window, soft_cap=soft_cap)
    got_gradients = torch.autograd.grad(got, (q, k, v), direction)
    wide_q, wide_k, wide_v = (x.detach().float().requires_grad_() for x in (q, k, v))
    want = _dense(wide_q, wide_k, wide_v, layout, window, soft_cap)
    want_gradients = torch.autograd.grad(want, (wide_q, wide_k, wide_v), direction.float())
    real = (~layout.is_padding_BL)[:, :, None, None]
    pairs = [(got * real, want * real), *zip(got_gradients, want_gradients, strict=True)]
    return [float((a.float() - b).norm() / b.norm()) for a, b in pairs]


def _dense(
    q: Tensor, k: Tensor, v: Tensor, layout: DocumentLayout, window: int | None, soft_cap: float | None
) -> Tensor:
    """The definition, with an L x L mask."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("blhk,bmhk->bhlm", q, k) / q.shape[-1] ** 0.5
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    place = torch.arange(q.shape[1], device="cuda")
    first = layout.first_keys(window)
    visible = (place[None, None, :] >= first[:, :, None]) & (place[None, None, :] <= place[None, :, None])
    weights = scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhlm,bmhk->blhk", weights, v)


def speed(
    choice: Kernels, length: int, tokens: int = 16_384, heads: int = 16, key_heads: int = 8
) -> tuple[float, float]:
    """TFLOP/s forward, and forward with backward, in BF16 with heads of 128; only visible keys are counted."""
    kernels.use(choice, torch.device("cuda"))
    layout = _layout([length] * (tokens // length))
    q, k, v, direction = _inputs(tokens, heads, key_heads, 128, torch.bfloat16)
    operations = 4 * heads * 128 * (tokens // length) * (length * (length + 1) / 2)

    def forward() -> Tensor:
        return attention.attend(q, k, v, layout)

    def both() -> None:
        torch.autograd.grad(forward(), (q, k, v), direction)

    rates: list[tuple[Callable[[], object], float]] = [(forward, 1.0), (both, 3.5)]
    forward_rate, both_rate = (operations * factor / milliseconds(f) / 1e9 for f, factor in rates)
    return forward_rate, both_rate
