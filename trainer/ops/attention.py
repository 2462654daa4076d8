"""Causal attention within the documents of a packed batch.

Shapes: B rows, L tokens a row, T = B * L tokens, H query heads, G key heads (H is a multiple of G), K head size,
N documents of one length, S that length.

On a GPU it is FlexAttention with a block mask. On a CPU each document is attended by itself, documents of equal length
together. Neither makes an L x L mask.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable

import torch
import torch._dynamo
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import flex_attention

from finecut.trainer.ops.document_layout import DocumentLayout

_MAX_SHAPES = 64  # dynamo's own limit is 8; each type, head count and kind of gradient counts


def packed_attention(
    q_BLHK: Tensor, k_BLGK: Tensor, v_BLGK: Tensor, document_ids_BL: Tensor, position_ids_BL: Tensor
) -> Tensor:
    """Causal grouped-query attention that never crosses a document; returns BLHK.

    Padding (document id -1) gives finite outputs and no gradient to any document.
    """
    return attend(q_BLHK, k_BLGK, v_BLGK, DocumentLayout.of(document_ids_BL, position_ids_BL))


def attend(q_BLHK: Tensor, k_BLGK: Tensor, v_BLGK: Tensor, layout: DocumentLayout) -> Tensor:
    """`packed_attention` with the layout already worked out, as the decoder's layers share it."""
    if q_BLHK.is_cuda:
        return _attend_in_blocks(q_BLHK, k_BLGK, v_BLGK, layout)
    return _attend_by_document(q_BLHK, k_BLGK, v_BLGK, layout)


def _attend_in_blocks(q_BLHK: Tensor, k_BLGK: Tensor, v_BLGK: Tensor, layout: DocumentLayout) -> Tensor:
    attention = _compiled_flex_attention()
    out_BHLK = attention(
        q_BLHK.transpose(1, 2),
        k_BLGK.transpose(1, 2),
        v_BLGK.transpose(1, 2),
        block_mask=layout.block_mask,
        enable_gqa=q_BLHK.shape[2] != k_BLGK.shape[2],
        # Rows shorter than a block would be taken for decoding, whose kernel does not know grouped queries in FP32.
        kernel_options={"BACKEND": "TRITON"},
    )
    return out_BHLK.transpose(1, 2)


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    """FlexAttention is only fused, and only free of an L x L matrix, when it is compiled.

    Once there are more shapes than the limit, dynamo would quietly go back to the dense form; `fullgraph` makes it an
    error instead. A training run has two shapes, its blocks with and without gradients.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_SHAPES)
    return torch.compile(flex_attention.flex_attention, fullgraph=True, dynamic=False)


def _attend_by_document(q_BLHK: Tensor, k_BLGK: Tensor, v_BLGK: Tensor, layout: DocumentLayout) -> Tensor:
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
        out_NSHK = _causal(q_NSHK, k_NSGK, v_NSGK)
        for i, out_SHK in zip(members, out_NSHK.unbind(), strict=True):
            outputs[i] = out_SHK
    return torch.cat(outputs).view(q_BLHK.shape)


def _zeros(q_SHK: Tensor, k_SGK: Tensor, v_SGK: Tensor) -> Tensor:
    """Zeros that depend on all three.

    A rank whose batch is all padding has a zero gradient for each parameter then, rather than none: FSDP's ranks have
    to reduce the same set of gradients.
    """
    return q_SHK * 0 + (k_SGK * 0 + v_SGK * 0).repeat_interleave(q_SHK.shape[1] // k_SGK.shape[1], dim=1)


def _causal(q_NSHK: Tensor, k_NSGK: Tensor, v_NSGK: Tensor) -> Tensor:
    q_NHSK, k_NGSK, v_NGSK = (x.transpose(1, 2) for x in (q_NSHK, k_NSGK, v_NSGK))
    enable_gqa = q_NSHK.shape[2] != k_NSGK.shape[2]
    out_NHSK = functional.scaled_dot_product_attention(q_NHSK, k_NGSK, v_NGSK, is_causal=True, enable_gqa=enable_gqa)
    return out_NHSK.transpose(1, 2)
