"""Cross entropy with the head's rows split over a tensor-parallel group, one chunk of tokens at a time.

Shapes: T tokens, C tokens of a chunk, D hidden size, V rows of the padded vocabulary on this rank.

No rank ever has a token's whole logits. Two numbers a token go over the group: the largest logit, then the sum of
exponentials beside the target's logit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finecut.trainer.ops.cross_entropy import IGNORED
from finecut.trainer.ops.tensor_collectives import all_reduce


def cross_entropy_sum(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    chunk_tokens: int,
    vocabulary_size: int,
    *,
    first_row: int,
    group_name: str,
) -> Tensor:
    """`ops.cross_entropy.cross_entropy_sum` over a head whose rows from `first_row` on are this rank's. Collective.

    Every rank passes the same hidden states and targets, and gets the same loss and the same gradient of the hidden
    states; the gradient of the weight is that of its own rows. Rows from `vocabulary_size` on, counted over all ranks,
    are padding.
    """
    assert hidden_TD.ndim == 2 and targets_T.shape == hidden_TD.shape[:1], (hidden_TD.shape, targets_T.shape)
    is_target_T = targets_T != IGNORED
    return _VocabularyParallelSum.apply(
        hidden_TD[is_target_T],
        weight_VD,
        targets_T[is_target_T] - first_row,
        chunk_tokens,
        vocabulary_size - first_row,
        group_name,
    )


class _VocabularyParallelSum(torch.autograd.Function):
    """Works out gradients in the forward pass, as the loss of one rank does and for the same reason."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        targets_T: Tensor,  # counted from this rank's first row; another rank's where out of range
        chunk_tokens: int,
        num_rows: int,  # from this one on, rows are padding; may be less than 0 or more than V
        group_name: str,
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        total_type = torch.promote_types(hidden_TD.dtype, torch.float32)
        loss = torch.zeros((), dtype=total_type, device=hidden_TD.device)
        hidden_grad_TD = torch.zeros_like(hidden_TD) if wants_hidden else None
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=total_type) if wants_weight else None
        is_own_T = (targets_T >= 0) & (targets_T < weight_VD.shape[0])
        for begin in range(0, hidden_TD.shape[0], chunk_tokens):
            chunk = slice(begin, begin + chunk_tokens)
            hidden_CD, is_own_C1 = hidden_TD[chunk], is_own_T[chunk, None]
            targets_C1 = targets_T[chunk, None].where(is_own_C1, 0)
            logits_CV = (hidden_CD @ weight_VD.T).to(total_type)
            logits_CV[:, max(0, num_rows) :] = -torch.inf
            largest_C1 = all_reduce(logits_CV.amax(dim=-1, keepdim=True), group_name, "max")
            # Both shifted by the largest, so that neither loses digits.
            shifted_CV = logits_CV.sub_(largest_C1)
            target_C1 = shifted_CV.gather(1, targets_C1).where(is_own_C1, 0)
            weights_CV = shifted_CV.exp_()
            sums_2C1 = all_reduce(torch.stack([weights_CV.sum(dim=-1, keepdim=True), target_C1]), group_name)
            loss += (sums_2C1[0].log() - sums_2C1[1]).sum()
            if not (wants_hidden or wants_weight):
                continue
            # d loss / d logits = softmax - one-hot, in place of the exponentials.
            slope_CV = weights_CV.div_(sums_2C1[0])
            slope_CV.scatter_add_(1, targets_C1, -is_own_C1.to(total_type))
            slope_CV = slope_CV.to(hidden_TD.dtype)
            if hidden_grad_TD is not None:
                hidden_grad_TD[chunk] = slope_CV @ weight_VD
            if weight_grad_VD is not None:
                weight_grad_VD += slope_CV.T @ hidden_CD
        if hidden_grad_TD is not None:
            hidden_grad_TD = all_reduce(hidden_grad_TD, group_name)
        ctx.save_for_backward(hidden_grad_TD, weight_grad_VD)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad_TD, weight_grad_VD = ctx.saved_tensors
        # In place, because the head's gradient is among the largest tensors there are.
        gradients = [None if grad is None else grad.mul_(loss_grad) for grad in (hidden_grad_TD, weight_grad_VD)]
        return *gradients, None, None, None, None
