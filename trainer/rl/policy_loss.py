"""The clipped loss of a policy, over tokens that lie in a row.

    ratio   = p(token) / p_old(token)
    loss    = -sum of weight * min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)            (PPO: Schulman et al. 2017)
              and, where A < 0, at most -c * A                                       (dual clip: Ye et al. 2020)
    weights = `token_weights`, in which PPO, GRPO, Dr. GRPO and DAPO differ

Shapes: N answers, T tokens of the longest; of flat arguments T is all tokens.
"""

from __future__ import annotations

import dataclasses
import enum

import torch
from torch import Tensor

# Beyond it (a ratio of 5e8) exp overflows in FP32 before long. Clipping has long decided where the advantage is
# positive; a token whose advantage is negative keeps a finite loss, and no gradient.
LARGEST_LOG_RATIO = 20.0


class Aggregation(enum.Enum):
    """How token losses become one number."""

    # Every token of the step weighs the same (DAPO: Yu et al., 2025).
    TOKEN_MEAN = "token_mean"
    # Every answer weighs the same, its tokens share that (GRPO: Shao et al., 2024).
    SEQUENCE_MEAN = "sequence_mean"
    # Every token weighs one over the longest answer, whatever its answer's length (Dr. GRPO: Liu et al., 2025).
    CONSTANT_LENGTH = "constant_length"


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """Of one call. `loss_sum` is differentiable; all else is detached, and leaves out tokens of weight 0."""

    loss_sum: Tensor
    # Tokens whose gradient the clip took away.
    num_clipped: Tensor
    # Sum over tokens of ratio - 1 - log ratio, which estimates KL(old || new) in nats.
    kl_sum: Tensor
    ratio_sum: Tensor
    # 0 where there is no token.
    ratio_max: Tensor


def clipped_sum(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """The weighted sum over flat tokens; all tensors are [T].

    Args:
      log_probs: Of the policy that is trained; gradients go through these alone.
      old_log_probs: Of the policy that the optimisation passes started from.
      weights: Of each token in the sum; 0 takes it out, whatever its other values are.
      dual_clip: The most that a token with a negative advantage costs, in multiples of it; above 1. None: no limit.
    """
    counts_T = weights != 0
    log_ratio_T = (log_probs - old_log_probs.detach()).where(counts_T, 0)
    log_ratio_T = log_ratio_T.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    advantages_T = advantages.detach().where(counts_T, 0)
    ratio_T = log_ratio_T.exp()
    plain_T = ratio_T * advantages_T
    clipped_T = ratio_T.clamp(1 - clip_low, 1 + clip_high) * advantages_T
    gain_T = torch.minimum(plain_T, clipped_T)
    is_clipped_T = clipped_T < plain_T
    if dual_clip is not None:
        floor_T = dual_clip * advantages_T
        is_bounded_T = (advantages_T < 0) & (floor_T > gain_T)
        is_clipped_T = is_clipped_T | is_bounded_T
        gain_T = torch.where(is_bounded_T, floor_T, gain_T)
    ratio_T = ratio_T.detach()
    return PolicyLoss(
        loss_sum=-(weights * gain_T).sum(),
        num_clipped=(is_clipped_T & counts_T).sum(),
        kl_sum=(ratio_T - 1 - log_ratio_T.detach()).sum(),
        ratio_sum=ratio_T.where(counts_T, 0).sum(),
        ratio_max=ratio_T.where(counts_T, 0).max() if len(ratio_T) else ratio_T.sum(),
    )


def token_weights(
    mask_NT: Tensor, aggregation: Aggregation, max_new_tokens: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The weight of each token in a step's sum, [N, T]; 0 outside the mask.

    The sum is divided by the step's sampled tokens for TOKEN_MEAN, else by its answers, empty ones too.
    """
    weights_NT = mask_NT.to(dtype)
    match aggregation:
        case Aggregation.TOKEN_MEAN:
            return weights_NT
        case Aggregation.SEQUENCE_MEAN:
            return weights_NT / mask_NT.sum(1, keepdim=True).clamp(min=1)
        case Aggregation.CONSTANT_LENGTH:
            return weights_NT / max_new_tokens


def importance_weights(log_probs: Tensor, behaviour_log_probs: Tensor, cap: float) -> Tensor:
    """min(p / p_behaviour, cap) of each token, detached: what corrects for samples of an older policy.

    The bound trades a bias for a bounded variance (Espeholt et al., 2018).
    """
    log_ratio = (log_probs - behaviour_log_probs).detach().clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return log_ratio.exp().clamp(max=cap)
