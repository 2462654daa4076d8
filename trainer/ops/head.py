"""The language-model head's logits of a chunk of tokens: statistics of the softmax, then its slope in place of them.

Shapes: C tokens of a chunk, D hidden size, V vocabulary (padded, or one rank's slice of it), N tokens that are trained.

A chunk's logits exist once, in the type of the matrix product; everything worked out from them is FP32. On a GPU these
are two Triton kernels, elsewhere plain torch.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util

import torch
from torch import Tensor

from finecut.trainer.ops.vocabulary_parallel import NO_TARGET, VocabularySlice

IGNORED = -100  # a target that does not count; torch's own convention
# Logits of a chunk when no number of tokens is asked for. Smaller chunks spend more time on the head's gradient, which
# every chunk reads and writes once; docs/performance.md has the measurement.
_CHUNK_BYTES = 2**30
_CHUNK_MULTIPLE = 128  # tokens; a tile of the matrix kernels
_ENTROPY_ROWS = 512  # tokens of a chunk whose distributions exist in FP32


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """What turns hidden states into log-probabilities.

    `vocabulary_size` counts the real tokens: rows of the weight from there on are padding and take no part.
    `soft_cap`: logits x become soft_cap * tanh(x / soft_cap), as Gemma's; None: they stay. `temperature` divides them
    after that. `chunk_tokens`: tokens whose logits exist at one time; None: as many as fit 1 GiB. `slice`: the rows of
    the weight are a slice of the vocabulary's, whose statistics are put together with those of other ranks.
    """

    vocabulary_size: int
    chunk_tokens: int | None = None
    soft_cap: float | None = None
    temperature: float = 1.0
    slice: VocabularySlice | None = None

    def chunk_of(self, weight_VD: Tensor) -> int:
        """Tokens of a chunk for this weight."""
        if self.chunk_tokens is not None:
            return self.chunk_tokens
        fitting = _CHUNK_BYTES // (weight_VD.shape[0] * weight_VD.element_size())
        return max(_CHUNK_MULTIPLE, fitting // _CHUNK_MULTIPLE * _CHUNK_MULTIPLE)


@dataclasses.dataclass(frozen=True)
class TrainedTokens:
    """The positions of a flattened batch that have a target, in order, and their targets; both int64 [N]."""

    position_N: Tensor
    target_N: Tensor

    @staticmethod
    def of(targets: Tensor) -> TrainedTokens:
        """From targets of any shape, IGNORED where none counts. Waits for the device: call it before there is work."""
        targets_T = targets.flatten()
        position_N = (targets_T != IGNORED).nonzero().flatten()
        return TrainedTokens(position_N, targets_T[position_N])


def normalizer_and_target(logits_CV: Tensor, target_C: Tensor, config: HeadConfig) -> tuple[Tensor, Tensor]:
    """The log-normaliser and the target's logit of each token, [C] each in FP32 (FP64 for FP64 logits).

    Both are of capped logits divided by the temperature. Where the target is NO_TARGET its logit is 0, so that ranks
    which each hold a slice of the vocabulary can add theirs up.
    """
    assert logits_CV.is_contiguous() and target_C.dtype == torch.int64
    if _in_triton(logits_CV):
        from finecut.trainer.ops import head_triton

        return head_triton.normalizer_and_target(
            logits_CV, target_C, config.vocabulary_size, config.soft_cap, config.temperature
        )
    value_CV = _values(logits_CV, config)
    has_target_C = target_C != NO_TARGET
    target_logit_C = value_CV.gather(1, target_C.clamp(min=0)[:, None])[:, 0]
    return value_CV.logsumexp(dim=-1), torch.where(has_target_C, target_logit_C, 0)


def expected_logit(logits_CV: Tensor, log_normalizer_C: Tensor, config: HeadConfig) -> Tensor:
    """The mean, [C], of capped logits divided by the temperature, under the softmax that the normaliser belongs to.

    Of a slice of the vocabulary: what it adds to that of the whole. The entropy is the normaliser less the whole.
    """
    found = []
    for logits_BV, normalizer_B in zip(
        logits_CV.split(_ENTROPY_ROWS), log_normalizer_C.split(_ENTROPY_ROWS), strict=True
    ):
        value_BV = _values(logits_BV, config)
        probability_BV = (value_BV - normalizer_B[:, None]).exp_()
        # Padding has no probability, and 0 * -inf must not be NaN.
        value_BV.clamp_(min=torch.finfo(value_BV.dtype).min)
        found.append(torch.linalg.vecdot(probability_BV, value_BV))
    return torch.cat(found) if found else log_normalizer_C


def replace_by_slope_(
    logits_CV: Tensor, log_normalizer_C: Tensor, target_C: Tensor, factor_C: Tensor, config: HeadConfig
) -> Tensor:
    """Writes factor * d(-log softmax[target]) / d logits over the logits, and returns them.

    Args:
      log_normalizer_C: over the whole vocabulary, also where the logits are those of a slice.
      factor_C: in FP32; the slope is multiplied by it before it is rounded to the type of the logits.
    """
    assert logits_CV.is_contiguous() and target_C.dtype == torch.int64
    if _in_triton(logits_CV):
        from finecut.trainer.ops import head_triton

        return head_triton.replace_by_slope_(
            logits_CV, log_normalizer_C, target_C, factor_C, config.vocabulary_size, config.soft_cap, config.temperature
        )
    slope_CV = (_values(logits_CV, config) - log_normalizer_C[:, None]).exp()
    has_target_C1 = (target_C != NO_TARGET)[:, None]
    slope_CV.scatter_add_(1, target_C.clamp(min=0)[:, None], -has_target_C1.to(slope_CV.dtype))
    if config.soft_cap is not None:
        slope_CV *= 1 - torch.tanh(logits_CV.to(slope_CV.dtype) / config.soft_cap).square()
    slope_CV *= (factor_C / config.temperature)[:, None]
    slope_CV[:, config.vocabulary_size :] = 0
    return logits_CV.copy_(slope_CV)


def _values(logits_CV: Tensor, config: HeadConfig) -> Tensor:
    """Capped and divided by the temperature, -inf on padding; always a new tensor."""
    value_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32), copy=True)
    if config.soft_cap is not None:
        value_CV = config.soft_cap * torch.tanh(value_CV / config.soft_cap)
    value_CV /= config.temperature
    value_CV[:, config.vocabulary_size :] = -torch.inf
    return value_CV


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _in_triton(logits_CV: Tensor) -> bool:
    return logits_CV.is_cuda and logits_CV.dtype != torch.float64 and _has_triton()
