"""Advantages: how much better a token, or an answer, was than expected.

Shapes: N answers, T tokens of the longest. A mask is True where the policy sampled the token; answers may have gaps,
where an environment spoke between two turns. Results have the type of the rewards.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-8


@torch.no_grad()
def gae(rewards_NT: Tensor, values_NT: Tensor, mask_NT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., 2016) over sampled tokens; an answer's end is worth 0.

    Returns advantages, and returns, which the critic learns: advantages + values. Both are 0 outside the mask, where
    rewards and values are not looked at.
    """
    values_NT = values_NT.to(rewards_NT.dtype)
    advantages_NT = torch.zeros_like(rewards_NT)
    next_value_N = torch.zeros_like(rewards_NT[:, 0])
    advantage_N = torch.zeros_like(next_value_N)
    for t in reversed(range(rewards_NT.shape[1])):
        is_sampled_N, value_N = mask_NT[:, t], values_NT[:, t]
        delta_N = rewards_NT[:, t] + gamma * next_value_N - value_N
        # A gap hands on what comes after it: the state before it is the last sampled token.
        advantage_N = torch.where(is_sampled_N, delta_N + gamma * lam * advantage_N, advantage_N)
        next_value_N = torch.where(is_sampled_N, value_N, next_value_N)
        advantages_NT[:, t] = advantage_N.where(is_sampled_N, 0)
    return advantages_NT, (advantages_NT + values_NT).where(mask_NT, 0)


@torch.no_grad()
def group_advantages(rewards_N: Tensor, group_size: int, scale_by_std: bool, epsilon: float = 1e-6) -> Tensor:
    """Rewards less their group's mean (Shao et al., 2024), [N]. Groups are `group_size` answers side by side.

    With `scale_by_std`, over the group's standard deviation (of a sample: n - 1) plus `epsilon`; without, as in
    Dr. GRPO (Liu et al., 2025). An answer whose reward is NaN was not scored: it counts in no mean, and gets 0.
    """
    rewards_GS = rewards_N.view(-1, group_size)
    is_scored_GS = ~rewards_GS.isnan()
    scored_G1 = is_scored_GS.sum(1, keepdim=True)
    rewards_GS = rewards_GS.where(is_scored_GS, 0)
    mean_G1 = rewards_GS.sum(1, keepdim=True) / scored_G1.clamp(min=1)
    centred_GS = (rewards_GS - mean_G1).where(is_scored_GS, 0)
    if scale_by_std:
        variance_G1 = centred_GS.square().sum(1, keepdim=True) / (scored_G1 - 1).clamp(min=1)
        centred_GS = centred_GS / (variance_G1.sqrt() + epsilon)
    return centred_GS.flatten()


@torch.no_grad()
def normalize(advantages_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the sampled tokens.

    Equal advantages become 0. Sums are FP64, and the mean is taken off before anything is squared.
    """
    values_NT = advantages_NT.double().where(mask_NT, 0)
    count = mask_NT.sum().clamp(min=1)
    centred_NT = (values_NT - values_NT.sum() / count).where(mask_NT, 0)
    variance = centred_NT.square().sum() / count
    return (centred_NT / (variance.sqrt() + _EPSILON)).to(advantages_NT.dtype)
