"""Softmax statistics and slopes of a chunk of logits as Triton kernels; see `head`, which calls them.

Shapes: C tokens of a chunk, V padded vocabulary. Each logit is read twice and written once.
"""

# Triton's own annotations are not types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096  # logits that one program holds at a time
_WARPS = 8


def normalizer_and_target(
    logits_CV: Tensor, target_C: Tensor, vocabulary_size: int, soft_cap: float | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """See `head.normalizer_and_target`."""
    rows = logits_CV.shape[0]
    log_normalizer_C = torch.empty(rows, dtype=torch.float32, device=logits_CV.device)
    target_logit_C = torch.empty_like(log_normalizer_C)
    if rows:
        _statistics[(rows,)](
            logits_CV,
            logits_CV.stride(0),
            target_C,
            log_normalizer_C,
            target_logit_C,
            vocabulary_size,
            soft_cap or 1.0,
            1 / temperature,
            HAS_CAP=soft_cap is not None,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    return log_normalizer_C, target_logit_C


def replace_by_slope_(
    logits_CV: Tensor,
    log_normalizer_C: Tensor,
    target_C: Tensor,
    factor_C: Tensor,
    vocabulary_size: int,
    soft_cap: float | None,
    temperature: float,
) -> Tensor:
    """See `head.replace_by_slope_`."""
    rows, columns = logits_CV.shape
    if rows:
        _slope[(rows, triton.cdiv(columns, _BLOCK))](
            logits_CV,
            logits_CV.stride(0),
            log_normalizer_C,
            target_C,
            factor_C,
            columns,
            vocabulary_size,
            soft_cap or 1.0,
            1 / temperature,
            HAS_CAP=soft_cap is not None,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    return logits_CV


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _statistics(
    logits,
    row_stride,
    targets,
    log_normalizers,
    target_logits,
    vocabulary_size,
    soft_cap,
    inverse_temperature,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    largest = -float("inf")
    total = 0.0
    for begin in range(0, vocabulary_size, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        x = tl.load(logits + column, mask=column < vocabulary_size, other=-float("inf")).to(tl.float32)
        if HAS_CAP:
            x = tl.where(column < vocabulary_size, soft_cap * _tanh(x / soft_cap), -float("inf"))
        x *= inverse_temperature
        new_largest = tl.maximum(largest, tl.max(x, axis=0))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(x - new_largest), axis=0)
        largest = new_largest
    tl.store(log_normalizers + row, largest + tl.log(total))
    target = tl.load(targets + row)
    x = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)
    if HAS_CAP:
        x = soft_cap * _tanh(x / soft_cap)
    tl.store(target_logits + row, tl.where(target >= 0, x * inverse_temperature, 0.0))


@triton.jit
def _slope(
    logits,
    row_stride,
    log_normalizers,
    targets,
    factors,
    columns,
    vocabulary_size,
    soft_cap,
    inverse_temperature,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = logits + row * row_stride + column
    x = tl.load(place, mask=column < columns, other=0.0).to(tl.float32)
    chain = tl.load(factors + row).to(tl.float32) * inverse_temperature
    if HAS_CAP:
        bent = _tanh(x / soft_cap)
        x = soft_cap * bent
        chain = chain * (1 - bent * bent)
    probability = tl.exp(x * inverse_temperature - tl.load(log_normalizers + row))
    slope = (probability - tl.where(column == tl.load(targets + row), 1.0, 0.0)) * chain
    slope = tl.where(column < vocabulary_size, slope, 0.0)
    tl.store(place, slope.to(logits.dtype.element_ty), mask=column < columns)
