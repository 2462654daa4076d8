"""Cross entropy and log-probabilities of the language-model head, with logits for one chunk of tokens at a time.

Shapes: T tokens, N of them trained, C tokens of a chunk, D hidden size, V vocabulary (padded).

`cross_entropy_sum` works its gradients out in the forward pass, while a chunk's logits are there: three products.
`token_log_probabilities` waits for the gradient of each token and computes the logits twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from finecut.trainer.ops.head import (
    IGNORED,
    HeadConfig,
    TrainedTokens,
    expected_logit,
    normalizer_and_target,
    replace_by_slope_,
)
from finecut.trainer.ops.vocabulary_parallel import VocabularySlice

__all__ = ["IGNORED", "HeadConfig", "TrainedTokens", "cross_entropy_sum", "token_log_probabilities"]

# A slope is at most 1, and most are near 1/V: in FP16 they would be subnormal or zero. They are rounded at this scale,
# which the matrix products, accurate in FP32 inside, take out again.
_FP16_SLOPE_SCALE = 2.0**10
# Chunks that are added up in the weight's own 16-bit type. The error of n roundings grows as sqrt(n / 3) half-units: up
# to here it stays below that of the type itself; beyond, the sum is FP32.
_MAX_ROUNDINGS = 16


def cross_entropy_sum(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets: Tensor | TrainedTokens,
    chunk_tokens: int | None,
    vocabulary_size: int,
    *,
    token_weights_T: Tensor | None = None,
    soft_cap: float | None = None,
    gradient_scale: float = 1.0,
    vocabulary: VocabularySlice | None = None,
    token_losses_T: Tensor | None = None,
) -> Tensor:
    """Sum over tokens of -log softmax(hidden @ weight.T)[target], a scalar in FP32 (FP64 for FP64 input).

    Args:
      hidden_TD: hidden states after the final norm.
      weight_VD: the head; rows from `vocabulary_size` on are padding and take no part in the softmax.
      targets: token ids [T], -100 where the token does not count; those tokens never reach the head.
      chunk_tokens: tokens whose logits exist at one time. None: as many as fit 1 GiB.
      vocabulary_size: number of real tokens.
      token_weights_T: what each token counts, in FP32; it gets no gradient. At most 32 in FP16. None: 1.
      soft_cap: see HeadConfig.
      gradient_scale: what the result will be multiplied by before its backward pass (a loss scale over a number of
        tokens). Any value is right; with the true one the gradients are rounded once, at their final size.
      vocabulary: the rows of the weight are this slice of the vocabulary's. Every rank of its group calls with the same
        hidden states and targets, and gets the whole loss and the whole gradient of the hidden states.
      token_losses_T: written to where a token has a target: its loss, unweighted. FP32 (FP64 for FP64 input).

    The logits are computed once, and neither they nor the weight is kept for the backward pass. Second derivatives are
    not available.
    """
    trained = targets if isinstance(targets, TrainedTokens) else TrainedTokens.of(targets)
    config = HeadConfig(vocabulary_size, chunk_tokens, soft_cap, slice=vocabulary)
    trained, config = _of_slice(trained, weight_VD, config)
    weight_N = None if token_weights_T is None else token_weights_T[trained.position_N].detach()
    tensors = _of_one_type(hidden_TD, weight_VD)
    return _CrossEntropySum.apply(*tensors, trained, weight_N, config, gradient_scale, token_losses_T)


def token_log_probabilities(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets: Tensor | TrainedTokens,
    config: HeadConfig,
    entropies_T: Tensor | None = None,
) -> Tensor:
    """log softmax(hidden @ weight.T)[target] of each token, [T] in FP32 (FP64 for FP64 input); 0 without a target.

    `entropies_T`: written to where a token has a target: the entropy of its softmax, in nats.

    Differentiable once with respect to the hidden states and the weight. Between the passes it keeps one number a
    token; the backward pass computes the logits again, a chunk at a time.
    """
    trained = targets if isinstance(targets, TrainedTokens) else TrainedTokens.of(targets)
    trained, config = _of_slice(trained, weight_VD, config)
    return _TokenLogProbabilities.apply(*_of_one_type(hidden_TD, weight_VD), trained, config, entropies_T)


def _of_slice(trained: TrainedTokens, weight_VD: Tensor, config: HeadConfig) -> tuple[TrainedTokens, HeadConfig]:
    """Targets and vocabulary counted from this rank's first row."""
    if config.slice is None:
        return trained, config
    own = config.slice.targets(trained.target_N, weight_VD.shape[0])
    size = config.slice.size_of(config.vocabulary_size, weight_VD.shape[0])
    return TrainedTokens(trained.position_N, own), dataclasses.replace(config, vocabulary_size=size)


def _normalizer_and_target(logits_CV: Tensor, target_C: Tensor, config: HeadConfig) -> tuple[Tensor, Tensor]:
    """Over the whole vocabulary, whatever slice of it the logits are."""
    log_normalizer_C, target_logit_C = normalizer_and_target(logits_CV, target_C, config)
    if config.slice is None:
        return log_normalizer_C, target_logit_C
    return config.slice.combine(log_normalizer_C, target_logit_C)


def _entropy(logits_CV: Tensor, log_normalizer_C: Tensor, config: HeadConfig) -> Tensor:
    """Of the whole vocabulary's softmax."""
    expected_C = expected_logit(logits_CV, log_normalizer_C, config)
    return log_normalizer_C - (expected_C if config.slice is None else config.slice.sum(expected_C))


def _of_one_type(hidden_TD: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """As autocast, which does not reach into products that write to a given tensor, would cast them."""
    kind = hidden_TD.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_TD.dtype
    return hidden_TD.to(dtype), weight_VD.to(dtype)


class _HeadGradients:
    """Adds up the gradients of hidden states and weight over chunks of slopes."""

    def __init__(
        self, hidden_TD: Tensor, weight_VD: Tensor, wants: tuple[bool, bool], num_chunks: int, config: HeadConfig
    ) -> None:
        wants_hidden, wants_weight = wants
        self._slice = config.slice
        self._weight_VD = weight_VD
        self.hidden_TD = torch.zeros_like(hidden_TD) if wants_hidden else None
        self.weight_VD: Tensor | None = None
        if wants_weight:
            is_long = num_chunks > _MAX_ROUNDINGS or weight_VD.dtype not in (torch.bfloat16, torch.float16)
            total_type = torch.promote_types(weight_VD.dtype, torch.float32) if is_long else weight_VD.dtype
            make = torch.empty_like if num_chunks else torch.zeros_like
            self.weight_VD = make(weight_VD, dtype=total_type)
        self._is_first = True

    def add(self, position_C: Tensor, hidden_CD: Tensor, slope_CV: Tensor, factor: float) -> None:
        """Takes in a chunk whose true slopes are `factor` times these."""
        if self.hidden_TD is not None:
            grad_CD = torch.empty_like(hidden_CD)
            torch.addmm(grad_CD, slope_CV, self._weight_VD, beta=0, alpha=factor, out=grad_CD)
            self.hidden_TD.index_copy_(0, position_C, grad_CD)
        if self.weight_VD is not None:
            _accumulate(self.weight_VD, slope_CV.T, hidden_CD, factor, beta=0 if self._is_first else 1)
        self._is_first = False

    def of_hidden_states(self) -> Tensor | None:
        """That of the hidden states, over the whole vocabulary; after the last chunk."""
        if self.hidden_TD is None or self._slice is None:
            return self.hidden_TD
        return self._slice.sum(self.hidden_TD)


def _accumulate(total: Tensor, a: Tensor, b: Tensor, alpha: float, beta: int) -> None:
    """total = beta * total + alpha * a @ b, in the type of the total."""
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=beta, alpha=alpha, out=total)
    elif total.is_cuda:
        torch.addmm(total, a, b, beta=beta, alpha=alpha, out_dtype=total.dtype, out=total)
    else:
        product = (a @ b).to(total.dtype).mul_(alpha)
        total.copy_(product) if beta == 0 else total.add_(product)


def _chunks(trained: TrainedTokens, size: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    for begin in range(0, len(trained.position_N), size):
        chunk = slice(begin, begin + size)
        yield chunk, trained.position_N[chunk], trained.target_N[chunk]


def _slope_scale(dtype: torch.dtype) -> float:
    return _FP16_SLOPE_SCALE if dtype == torch.float16 else 1.0


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        trained: TrainedTokens,
        weight_N: Tensor | None,
        config: HeadConfig,
        gradient_scale: float,
        token_losses_T: Tensor | None,
    ) -> Tensor:
        assert hidden_TD.ndim == 2, hidden_TD.shape
        total_type = torch.promote_types(hidden_TD.dtype, torch.float32)
        loss = torch.zeros((), dtype=total_type, device=hidden_TD.device)
        size, slope_scale = config.chunk_of(weight_VD), _slope_scale(hidden_TD.dtype)
        num_chunks = -(-len(trained.position_N) // size)
        wants = ctx.needs_input_grad[:2]
        gradients = _HeadGradients(hidden_TD, weight_VD, wants, num_chunks, config)
        ones_C = torch.ones(size, dtype=total_type, device=hidden_TD.device)
        for chunk, position_C, target_C in _chunks(trained, size):
            weight_C = ones_C[: len(target_C)] if weight_N is None else weight_N[chunk].to(total_type)
            hidden_CD = hidden_TD.index_select(0, position_C)
            logits_CV = hidden_CD @ weight_VD.T
            log_normalizer_C, target_logit_C = _normalizer_and_target(logits_CV, target_C, config)
            loss_C = log_normalizer_C - target_logit_C
            if token_losses_T is not None:
                token_losses_T[position_C] = loss_C
            loss += (loss_C * weight_C).sum()
            if any(wants):
                replace_by_slope_(logits_CV, log_normalizer_C, target_C, weight_C * slope_scale, config)
                gradients.add(position_C, hidden_CD, logits_CV, gradient_scale / slope_scale)
            del logits_CV  # before the next chunk's are made
        weight_grad_VD = gradients.weight_VD
        ctx.save_for_backward(
            gradients.of_hidden_states(), None if weight_grad_VD is None else weight_grad_VD.to(weight_VD.dtype)
        )
        ctx.gradient_scale = gradient_scale
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad_TD, weight_grad_VD = ctx.saved_tensors
        factor = loss_grad / ctx.gradient_scale
        # In place, because the head's gradient is among the largest tensors there are. A second backward pass through
        # the same graph would scale twice; autograd's version check raises then.
        gradients = [None if grad is None else grad.mul_(factor) for grad in (hidden_grad_TD, weight_grad_VD)]
        return *gradients, None, None, None, None, None


class _TokenLogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        trained: TrainedTokens,
        config: HeadConfig,
        entropies_T: Tensor | None,
    ) -> Tensor:
        assert hidden_TD.ndim == 2, hidden_TD.shape
        total_type = torch.promote_types(hidden_TD.dtype, torch.float32)
        result_T = torch.zeros(hidden_TD.shape[0], dtype=total_type, device=hidden_TD.device)
        log_normalizer_N = torch.empty(len(trained.position_N), dtype=total_type, device=hidden_TD.device)
        for chunk, position_C, target_C in _chunks(trained, config.chunk_of(weight_VD)):
            logits_CV = hidden_TD.index_select(0, position_C) @ weight_VD.T
            log_normalizer_C, target_logit_C = _normalizer_and_target(logits_CV, target_C, config)
            result_T[position_C] = target_logit_C - log_normalizer_C
            log_normalizer_N[chunk] = log_normalizer_C
            if entropies_T is not None:
                entropies_T[position_C] = _entropy(logits_CV, log_normalizer_C, config)
            del logits_CV
        ctx.save_for_backward(hidden_TD, weight_VD, trained.position_N, trained.target_N, log_normalizer_N)
        ctx.config = config
        return result_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, position_N, target_N, log_normalizer_N = ctx.saved_tensors
        trained, config = TrainedTokens(position_N, target_N), ctx.config
        size = config.chunk_of(weight_VD)
        grad_N, factor = -grad_T[position_N], 1.0
        if hidden_TD.dtype == torch.float16 and len(grad_N):
            # Slopes are rounded at the scale of the largest gradient, whatever that is.
            factor = max(float(grad_N.abs().max()), torch.finfo(torch.float32).tiny) / _FP16_SLOPE_SCALE
        num_chunks = -(-len(position_N) // size)
        gradients = _HeadGradients(hidden_TD, weight_VD, ctx.needs_input_grad[:2], num_chunks, config)
        for chunk, position_C, target_C in _chunks(trained, size):
            hidden_CD = hidden_TD.index_select(0, position_C)
            logits_CV = hidden_CD @ weight_VD.T
            replace_by_slope_(logits_CV, log_normalizer_N[chunk], target_C, grad_N[chunk] / factor, config)
            gradients.add(position_C, hidden_CD, logits_CV, factor)
            del logits_CV
        weight_grad_VD = gradients.weight_VD
        if weight_grad_VD is not None:
            weight_grad_VD = weight_grad_VD.to(weight_VD.dtype)
        return gradients.of_hidden_states(), weight_grad_VD, None, None, None
