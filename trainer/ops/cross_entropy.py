"""Cross entropy of the language-model head, with logits for one chunk of tokens at a time.

Shapes: T tokens, C tokens of a chunk, D hidden size, V vocabulary (padded).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # a target that does not count; torch's own convention


def cross_entropy_sum(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    chunk_tokens: int,
    vocabulary_size: int,
    *,
    soft_cap: float | None = None,
) -> Tensor:
    """Sum over tokens of -log softmax(hidden @ weight.T)[target], a scalar in FP32 (FP64 for FP64 input).

    Args:
      hidden_TD: hidden states after the final norm.
      weight_VD: the head; rows from `vocabulary_size` on are padding and take no part in the softmax.
      targets_T: token ids, or -100 where the token does not count. Those tokens never reach the head.
      chunk_tokens: tokens whose logits exist at one time.
      vocabulary_size: number of real tokens.
      soft_cap: logits x become soft_cap * tanh(x / soft_cap). None: they stay.

    The gradients are worked out in the forward pass, while a chunk's logits are there: the logits are computed once,
    and neither they nor the weight is kept for the backward pass. The head's gradient is summed over chunks in FP32.
    Second derivatives are not available.
    """
    assert hidden_TD.ndim == 2 and targets_T.shape == hidden_TD.shape[:1], (hidden_TD.shape, targets_T.shape)
    is_target_T = targets_T != IGNORED
    return _LinearCrossEntropySum.apply(
        hidden_TD[is_target_T], weight_VD, targets_T[is_target_T], chunk_tokens, vocabulary_size, soft_cap
    )


class _LinearCrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        targets_T: Tensor,
        chunk_tokens: int,
        vocabulary_size: int,
        soft_cap: float | None,
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        total_type = torch.promote_types(hidden_TD.dtype, torch.float32)
        loss = torch.zeros((), dtype=total_type, device=hidden_TD.device)
        hidden_grad_TD = torch.zeros_like(hidden_TD) if wants_hidden else None
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=total_type) if wants_weight else None
        for begin in range(0, hidden_TD.shape[0], chunk_tokens):
            chunk = slice(begin, begin + chunk_tokens)
            hidden_CD, targets_C1 = hidden_TD[chunk], targets_T[chunk, None]
            logits_CV = (hidden_CD @ weight_VD.T).to(total_type)
            cap_slope_CV = None
            if soft_cap is not None:
                ratio_CV = torch.tanh(logits_CV / soft_cap)
                logits_CV, cap_slope_CV = soft_cap * ratio_CV, 1 - ratio_CV.square()
            logits_CV[:, vocabulary_size:] = -torch.inf
            log_normalizer_C1 = logits_CV.logsumexp(dim=-1, keepdim=True)
            loss += (log_normalizer_C1 - logits_CV.gather(1, targets_C1)).sum()
            if not (wants_hidden or wants_weight):
                continue
            # d loss / d logits = softmax - one-hot, in place of the logits.
            slope_CV = logits_CV.sub_(log_normalizer_C1).exp_()
            slope_CV.scatter_add_(1, targets_C1, slope_CV.new_full((), -1).expand_as(targets_C1))
            if cap_slope_CV is not None:
                slope_CV.mul_(cap_slope_CV)
            slope_CV = slope_CV.to(hidden_TD.dtype)
            if hidden_grad_TD is not None:
                hidden_grad_TD[chunk] = slope_CV @ weight_VD
            if weight_grad_VD is not None:
                weight_grad_VD += slope_CV.T @ hidden_CD
        ctx.save_for_backward(hidden_grad_TD, weight_grad_VD)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad_TD, weight_grad_VD = ctx.saved_tensors
        # In place, because the head's gradient is among the largest tensors there are. A second backward pass through
        # the same graph would scale twice; autograd's version check raises then.
        gradients = [None if grad is None else grad.mul_(loss_grad) for grad in (hidden_grad_TD, weight_grad_VD)]
        return *gradients, None, None, None, None
