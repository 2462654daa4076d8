"""Divergence of a student's token distributions from a teacher's, with logits for one chunk of tokens at a time.

Shapes: N tokens, C tokens of a chunk, D and E hidden sizes of student and teacher, V vocabulary (padded), K kept.

Both models' logits of a chunk exist once, in the forward pass, which also works the student's gradients out: neither
logits nor weights are kept for the backward pass.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from finecut.trainer.ops.head import HeadConfig
from finecut.trainer.ops.kept_tokens import (
    KeptTokens,
    capped,
    is_kept,
    keep_of_logits,
    log_normalizer,
    logits_of,
    num_real_rows,
)
from finecut.trainer.ops.vocabulary_parallel import VocabularySlice


class Divergence(enum.Enum):
    """KL(teacher || student), KL(student || teacher), and the mean of both to their mixture."""

    FORWARD_KL = "forward"
    REVERSE_KL = "reverse"
    JENSEN_SHANNON = "jensen-shannon"


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """What is compared, and how the student's logits are made.

    `top_k`: both distributions are those over the teacher's K likeliest tokens, and one rest that holds all others;
    None: over the whole vocabulary. `temperature` divides the logits of both. The result is multiplied by its square,
    so that gradients stay of one size (Hinton et al., 2015).
    """

    student: HeadConfig
    divergence: Divergence = Divergence.FORWARD_KL
    temperature: float = 1.0
    top_k: int | None = None


@dataclasses.dataclass(frozen=True)
class TeacherStates:
    """What a teacher says of every token: its hidden states, [N, E], and the head that makes logits of them."""

    hidden_NE: Tensor
    weight_VE: Tensor
    head: HeadConfig

    def __len__(self) -> int:
        """N."""
        return len(self.hidden_NE)

    def logits(self, chunk: slice, dtype: torch.dtype) -> Tensor:
        """[C, V], multiplied in `dtype`."""
        hidden_CE, weight_VE = self.hidden_NE[chunk].detach().to(dtype), self.weight_VE.detach().to(dtype)
        return capped(logits_of(hidden_CE, weight_VE, self.head), self.head)


def divergence_sum(
    hidden_ND: Tensor, weight_VD: Tensor, teacher: TeacherStates | KeptTokens, config: DistillationConfig
) -> Tensor:
    """Sum over tokens of temperature^2 * divergence, in nats; a scalar in FP32 (FP64 for FP64 input).

    Differentiable once with respect to the student's hidden states and weight. With slices of the vocabulary the
    weights are this rank's rows, and every rank of the group calls with the same hidden states. Where the teacher is
    given as what it keeps, that was kept with this config's `top_k` and `temperature`.
    """
    assert len(hidden_ND) == len(teacher)
    kind = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
    vocabulary = config.student.slice

    def compare(chunk: slice, logits_CV: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(teacher, KeptTokens):
            return _slope_of_kept(logits_CV, teacher[chunk], config)
        teacher_CV = teacher.logits(chunk, dtype)
        if vocabulary is None:
            return _slope(logits_CV, teacher_CV, config)
        if config.top_k is not None and config.top_k < config.student.vocabulary_size:
            kept = keep_of_logits(teacher_CV, config.top_k, config.temperature, vocabulary)
            return _slope_of_kept(logits_CV, kept, config)
        return _slope_of_slice(logits_CV, teacher_CV, config, vocabulary)

    return _DivergenceSum.apply(hidden_ND.to(dtype), weight_VD.to(dtype), config, compare)


def token_divergence(student_CV: Tensor, teacher_CV: Tensor, config: DistillationConfig) -> Tensor:
    """temperature^2 * divergence of each token, [C], from logits over the real vocabulary."""
    student_CV, teacher_CV = ((x / config.temperature).log_softmax(-1) for x in (student_CV, teacher_CV))
    if config.top_k is not None and config.top_k < teacher_CV.shape[-1]:
        kept_CK = teacher_CV.topk(config.top_k, dim=-1).indices
        student_CV, teacher_CV = (_with_rest(x, kept_CK) for x in (student_CV, teacher_CV))
    return _divergence(student_CV, teacher_CV, config)


def _divergence(student_CV: Tensor, teacher_CV: Tensor, config: DistillationConfig) -> Tensor:
    """temperature^2 * divergence of each token, summed over these tokens' log-probabilities."""
    return _terms(student_CV, teacher_CV, config).sum(-1)


def _terms(student: Tensor, teacher: Tensor, config: DistillationConfig) -> Tensor:
    """What each log-probability adds to temperature^2 * divergence."""
    if config.divergence is Divergence.FORWARD_KL:
        found = _kl(teacher, student)
    elif config.divergence is Divergence.REVERSE_KL:
        found = _kl(student, teacher)
    else:
        mixture = torch.logaddexp(student, teacher) - math.log(2)
        found = (_kl(teacher, mixture) + _kl(student, mixture)) / 2
    return config.temperature**2 * found


def _slope(logits_CV: Tensor, teacher_CV: Tensor, config: DistillationConfig) -> tuple[Tensor, Tensor]:
    """The divergence summed over the chunk, and its slope in the student's logits before they are capped."""
    with torch.enable_grad():
        logits_CV = logits_CV.detach().requires_grad_()
        loss = token_divergence(capped(logits_CV, config.student), teacher_CV, config).sum()
        return loss.detach(), torch.autograd.grad(loss, logits_CV)[0]


def _slope_of_slice(
    logits_CV: Tensor, teacher_CV: Tensor, config: DistillationConfig, vocabulary: VocabularySlice
) -> tuple[Tensor, Tensor]:
    """The same where each rank has the logits of its own tokens. Collective.

    Ranks share two log-normalisers a token, and what the parts of the sum say of the student's: the chain rule through
    it is completed with the sum over ranks.
    """
    teacher_CV = teacher_CV / config.temperature
    teacher_CV = teacher_CV - log_normalizer(teacher_CV, vocabulary)[:, None]
    with torch.enable_grad():
        logits_CV = logits_CV.detach().requires_grad_()
        scaled_CV = capped(logits_CV, config.student) / config.temperature
        normalizer_C = log_normalizer(scaled_CV.detach(), vocabulary).requires_grad_()
        log_q_CV = scaled_CV - normalizer_C[:, None]
        loss = _divergence(log_q_CV, teacher_CV, config).sum()
        scaled_slope_CV, normalizer_slope_C = torch.autograd.grad(loss, (scaled_CV, normalizer_C), retain_graph=True)
        whole_C = vocabulary.sum(normalizer_slope_C)
        scaled_slope_CV = scaled_slope_CV + whole_C[:, None] * log_q_CV.detach().exp()
        return vocabulary.sum(loss.detach()), torch.autograd.grad(scaled_CV, logits_CV, scaled_slope_CV)[0]


def _slope_of_kept(logits_CV: Tensor, kept: KeptTokens, config: DistillationConfig) -> tuple[Tensor, Tensor]:
    """As `_slope`, from what the teacher keeps; also where each rank has the logits of its own tokens. Collective.

    Ranks share two numbers a token, the log-normalisers of all tokens and of those that are not kept. The chain rule
    through both is completed with sums over ranks.
    """
    vocabulary = config.student.slice
    first_row = vocabulary.first_row if vocabulary else 0
    own_CK = kept.token_ids_NK - first_row
    is_own_CK = (own_CK >= 0) & (own_CK < logits_CV.shape[1])
    is_kept_CV = is_kept(logits_CV, kept.token_ids_NK, first_row)
    with torch.enable_grad():
        logits_CV = logits_CV.detach().requires_grad_()
        scaled_CV = capped(logits_CV, config.student) / config.temperature
        others_CV = scaled_CV.detach().masked_fill(is_kept_CV, -torch.inf)
        normalizer_C = log_normalizer(scaled_CV.detach(), vocabulary).requires_grad_()
        others_C = log_normalizer(others_CV, vocabulary).requires_grad_()
        log_q_CK = scaled_CV.gather(1, own_CK.clamp(0, logits_CV.shape[1] - 1)) - normalizer_C[:, None]
        loss = _terms(log_q_CK, kept.log_probs_NK, config).where(is_own_CK, 0).sum()
        if first_row == 0:  # the others count once
            loss = loss + _terms(others_C - normalizer_C, kept.rest_N, config).sum()
        found = torch.autograd.grad(
            loss, (scaled_CV, normalizer_C, others_C), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        scaled_slope_CV, shared_2C = found[0], torch.stack(found[1:])
        loss = loss.detach()
        if vocabulary:
            shared_2C, loss = vocabulary.sum(shared_2C), vocabulary.sum(loss)
        scaled_slope_CV = scaled_slope_CV + shared_2C[0, :, None] * (scaled_CV.detach() - normalizer_C[:, None]).exp()
        scaled_slope_CV = scaled_slope_CV + shared_2C[1, :, None] * (others_CV - others_C[:, None]).exp()
        return loss, torch.autograd.grad(scaled_CV, logits_CV, scaled_slope_CV.detach())[0]


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """The terms of KL(p || q), from log-probabilities."""
    return p.exp() * (p - q)


def _with_rest(log_p_CV: Tensor, kept_CK: Tensor) -> Tensor:
    """The kept tokens, and the log-probability of all others together."""
    kept_log_p_CK = log_p_CV.gather(-1, kept_CK)
    others_CV = log_p_CV.scatter(-1, kept_CK, -torch.inf)
    return torch.cat([kept_log_p_CK, others_CV.logsumexp(-1, keepdim=True)], dim=-1)


class _DivergenceSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        config: DistillationConfig,
        compare: Callable[[slice, Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        total_type = torch.promote_types(hidden_ND.dtype, torch.float32)
        total = torch.zeros((), dtype=total_type, device=hidden_ND.device)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        hidden_grad_ND = torch.zeros_like(hidden_ND) if wants_hidden else None
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=total_type) if wants_weight else None
        size, vocabulary = num_real_rows(weight_VD, config.student), config.student.slice
        # Both models' logits, and what the divergence makes of them, exist at a time.
        step = max(1, config.student.chunk_of(weight_VD) // 4)
        for begin in range(0, len(hidden_ND), step):
            chunk = slice(begin, begin + step)
            loss, slope_CV = compare(chunk, logits_of(hidden_ND[chunk], weight_VD, config.student))
            total += loss
            if hidden_grad_ND is not None:
                hidden_grad_ND[chunk] = (slope_CV @ weight_VD[:size].to(total_type)).to(hidden_ND.dtype)
            if weight_grad_VD is not None:
                weight_grad_VD[:size] += slope_CV.T @ hidden_ND[chunk].to(total_type)
        if hidden_grad_ND is not None and vocabulary is not None:
            hidden_grad_ND = vocabulary.sum(hidden_grad_ND)
        ctx.save_for_backward(hidden_grad_ND, None if weight_grad_VD is None else weight_grad_VD.to(weight_VD.dtype))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [None if found is None else found * grad.to(found.dtype) for found in ctx.saved_tensors]
        return *gradients, None, None
