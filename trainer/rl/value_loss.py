"""The loss of a critic, clipped as the policy's is (the PPO code of Schulman et al., 2017)."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_value_sum(values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor, clip: float) -> Tensor:
    """Sum of weight * max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2) / 2; all tensors are [T].

    A token of weight 0 is left out, whatever its other values are. Gradients go through `values` alone.
    """
    counts_T = weights != 0
    old_T, returns_T = old_values.detach().where(counts_T, 0), returns.detach().where(counts_T, 0)
    values_T = values.where(counts_T, 0)
    near_T = torch.clamp(values_T, old_T - clip, old_T + clip)
    worst_T = torch.maximum((values_T - returns_T).square(), (near_T - returns_T).square())
    return (weights * worst_T).sum() / 2
