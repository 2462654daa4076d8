"""The sums of tensor parallelism, each with the gradient that belongs to it (Megatron's f and g).

Between them every rank of a group computes the same, from the same loss: a gradient is whole on each rank, not shared.
Functional collectives, so that torch.compile can trace them and selective checkpointing can keep their results.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def all_reduce(x: Tensor, group_name: str, operation: str = "sum") -> Tensor:
    """A new tensor, reduced over the group; no gradient."""
    reduced = torch.ops._c10d_functional.all_reduce(x.contiguous(), operation, group_name)
    return torch.ops._c10d_functional.wait_tensor(reduced)


def sum_forward(partial: Tensor, group_name: str) -> Tensor:
    """Sums what each rank computed from its part; the gradient goes to every part unchanged."""
    return _SumForward.apply(partial, group_name)


def sum_backward(x: Tensor, group_name: str) -> Tensor:
    """Gives every rank the same `x`; its gradient is the sum of those that the ranks' parts make.

    A parameter's gradient, which lives as long as the step, is summed in FP32 by `sum_parameter_gradient`.
    """
    return _SumBackward.apply(x, group_name, False)


def sum_parameter_gradient(parameter: Tensor, group_name: str) -> Tensor:
    """As `sum_backward`, summed in FP32 whatever the type."""
    return _SumBackward.apply(parameter, group_name, True)


class _SumForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, group_name: str) -> Tensor:
        return all_reduce(partial, group_name)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _SumBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group_name: str, wide: bool) -> Tensor:
        ctx.group_name = group_name
        ctx.wide = wide
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        wide = torch.promote_types(gradient.dtype, torch.float32) if ctx.wide else gradient.dtype
        return all_reduce(gradient.to(wide), ctx.group_name).to(gradient.dtype), None, None
