"""Causal attention within the documents of a packed batch.

Shapes: B rows, L tokens a row, T = B * L tokens, H query heads, G key heads (H is a multiple of G), K head size,
N documents of one length, S that length, C queries of a chunk.

On a Hopper GPU it is FlashAttention 4 where that is installed and has the head size, on other GPUs FlexAttention with a
block mask. On a CPU each document is attended by itself, documents of equal length together. None makes an L x L mask.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable

import torch
import torch._dynamo
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import flex_attention

from finecut.trainer.ops import flash_attention, kernels
from finecut.trainer.ops.document_layout import DocumentLayout
from finecut.trainer.ops.kernels import Kernels

_CHUNK_QUERIES = 512
_MAX_SHAPES = 64  # dynamo's own limit is 8; each type, head count and kind of gradient counts


def packed_attention(
    q_BLHK: Tensor,
    k_BLGK: Tensor,
    v_BLGK: Tensor,
    document_ids_BL: Tensor,
    position_ids_BL: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """`attend` over documents given by ids (-1 is padding) and positions (which restart at 0 in each)."""
    layout = DocumentLayout.of(document_ids_BL, position_ids_BL)
    return attend(q_BLHK, k_BLGK, v_BLGK, layout, scale=scale, window=window, soft_cap=soft_cap)


def attend(
    q_BLHK: Tensor,
    k_BLGK: Tensor,
    v_BLGK: Tensor,
    layout: DocumentLayout,
    *,
    scale: float | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Causal grouped-query attention that never crosses a document; returns BLHK.

    Padding gives finite outputs and no gradient to any document.

    Args:
      layout: where the documents lie; the decoder's layers share it.
      scale: what scores are multiplied by. None: 1 / sqrt(K).
      window: keys that a token sees at most, its own among them (`sliding_window` in Hugging Face's configs).
        None: its whole document up to itself.
      soft_cap: scaled scores s become soft_cap * tanh(s / soft_cap), before the mask. None: they stay.
    """
    assert window is None or window >= 1, window
    scale = q_BLHK.shape[-1] ** -0.5 if scale is None else scale
    kind = _Kind(scale, window, soft_cap)
    if kernels.active() in (Kernels.AUTO, Kernels.APEX) and flash_attention.fits(q_BLHK):
        return flash_attention.attend(q_BLHK, k_BLGK, v_BLGK, layout.boundary_N1, scale, window, soft_cap)
    return _attend_eagerly(q_BLHK, k_BLGK, v_BLGK, layout, kind)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Which attention; see `attend`."""

    scale: float
    window: int | None
    soft_cap: float | None


@torch.compiler.disable
def _attend_eagerly(q_BLHK: Tensor, k_BLGK: Tensor, v_BLGK: Tensor, layout: DocumentLayout, kind: _Kind) -> Tensor:
    """Outside of a compiled layer: FlexAttention is compiled by itself, and documents are a Python list."""
    if q_BLHK.is_cuda:
        return _attend_in_blocks(q_BLHK, k_BLGK, v_BLGK, layout, kind)
    return _attend_by_document(q_BLHK, k_BLGK, v_BLGK, layout, kind)


def _attend_in_blocks(q_BLHK: Tensor, k_BLGK: Tensor, v_BLGK: Tensor, layout: DocumentLayout, kind: _Kind) -> Tensor:
    attention = _compiled_flex_attention()
    out_BHLK = attention(
        q_BLHK.transpose(1, 2),
        k_BLGK.transpose(1, 2),
        v_BLGK.transpose(1, 2),
        score_mod=None if kind.soft_cap is None else soft_capped_score(kind.soft_cap),
        block_mask=layout.block_mask(kind.window),
        scale=kind.scale,
        enable_gqa=q_BLHK.shape[2] != k_BLGK.shape[2],
        # Rows shorter than a block would be taken for decoding, whose kernel does not know grouped queries in FP32.
        kernel_options={"BACKEND": "TRITON"},
    )
    return out_BHLK.transpose(1, 2)


@functools.cache
def soft_capped_score(soft_cap: float) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention's score function for a cap; one function a cap, or each call would be compiled anew."""

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return soft_cap * torch.tanh(score / soft_cap)

    return capped


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    """FlexAttention is only fused, and only free of an L x L matrix, when it is compiled.

    Once there are more shapes than the limit, dynamo would quietly go back to the dense form; `fullgraph` makes it an
    error instead. A training run has two shapes, its blocks with and without gradients.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_SHAPES)
    return torch.compile(flex_attention.flex_attention, fullgraph=True, dynamic=False)


def _attend_by_document(q_BLHK: Tensor, k_BLGK: Tensor, v_BLGK: Tensor, layout: DocumentLayout, kind: _Kind) -> Tensor:
    spans = layout.spans
    lengths = [span.length for span in spans]
    # `split` rather than slices: its backward is one concatenation, not a full-size zero tensor for each document.
    q, k, v = (x.flatten(0, 1).split(lengths) for x in (q_BLHK, k_BLGK, v_BLGK))
    outputs: list[Tensor] = [torch.empty(0)] * len(spans)
    by_length: dict[int, list[int]] = collections.defaultdict(list)
    for i, span in enumerate(spans):
        if span.is_padding:
            outputs[i] = _zeros(q[i], k[i], v[i])
        else:
            by_length[span.length].append(i)
    for members in by_length.values():
        q_NSHK, k_NSGK, v_NSGK = (torch.stack([x[i] for i in members]) for x in (q, k, v))
        out_NSHK = _causal(q_NSHK, k_NSGK, v_NSGK, kind)
        for i, out_SHK in zip(members, out_NSHK.unbind(), strict=True):
            outputs[i] = out_SHK
    return torch.cat(outputs).view(q_BLHK.shape)


def _zeros(q_SHK: Tensor, k_SGK: Tensor, v_SGK: Tensor) -> Tensor:
    """Zeros that depend on all three.

    A rank whose batch is all padding has a zero gradient for each parameter then, rather than none: FSDP's ranks have
    to reduce the same set of gradients.
    """
    return q_SHK * 0 + (k_SGK * 0 + v_SGK * 0).repeat_interleave(q_SHK.shape[1] // k_SGK.shape[1], dim=1)


def _causal(q_NSHK: Tensor, k_NSGK: Tensor, v_NSGK: Tensor, kind: _Kind) -> Tensor:
    """Attention over whole documents of one length."""
    q_NHSK, k_NGSK, v_NGSK = (x.transpose(1, 2) for x in (q_NSHK, k_NSGK, v_NSGK))
    length = q_NHSK.shape[2]
    if kind.soft_cap is None and (kind.window is None or kind.window >= length):
        out_NHSK = functional.scaled_dot_product_attention(
            q_NHSK, k_NGSK, v_NGSK, is_causal=True, scale=kind.scale, enable_gqa=q_NHSK.shape[1] != k_NGSK.shape[1]
        )
    else:
        out_NHSK = _causal_in_chunks(q_NHSK, k_NGSK, v_NGSK, kind)
    return out_NHSK.transpose(1, 2)


def _causal_in_chunks(q_NHSK: Tensor, k_NGSK: Tensor, v_NGSK: Tensor, kind: _Kind) -> Tensor:
    """A chunk of queries at a time with the keys that it can see, so that masks and scores stay small."""
    length = q_NHSK.shape[2]
    outputs = []
    for begin in range(0, length, _CHUNK_QUERIES):
        end = min(begin + _CHUNK_QUERIES, length)
        first_key = 0 if kind.window is None else max(0, begin - kind.window + 1)
        distance_CS = torch.arange(begin, end)[:, None] - torch.arange(first_key, end)
        visible_CS = (distance_CS >= 0) & (distance_CS < (kind.window or length))
        keys = slice(first_key, end)
        outputs.append(_masked(q_NHSK[:, :, begin:end], k_NGSK[:, :, keys], v_NGSK[:, :, keys], visible_CS, kind))
    return torch.cat(outputs, dim=2)


def _masked(q_NHCK: Tensor, k_NGSK: Tensor, v_NGSK: Tensor, visible_CS: Tensor, kind: _Kind) -> Tensor:
    if kind.soft_cap is None:
        is_grouped = q_NHCK.shape[1] != k_NGSK.shape[1]
        return functional.scaled_dot_product_attention(
            q_NHCK, k_NGSK, v_NGSK, attn_mask=visible_CS, scale=kind.scale, enable_gqa=is_grouped
        )
    group = q_NHCK.shape[1] // k_NGSK.shape[1]
    k_NHSK, v_NHSK = (x.repeat_interleave(group, dim=1) for x in (k_NGSK, v_NGSK))
    score_NHCS = (q_NHCK @ k_NHSK.mT) * kind.scale
    score_NHCS = kind.soft_cap * torch.tanh(score_NHCS / kind.soft_cap)
    weight_type = torch.promote_types(q_NHCK.dtype, torch.float32)
    weight_NHCS = score_NHCS.masked_fill(~visible_CS, -torch.inf).softmax(-1, dtype=weight_type)
    return weight_NHCS.to(q_NHCK.dtype) @ v_NHSK
