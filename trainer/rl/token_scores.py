"""What models say of sampled tokens: log-probabilities under the distribution sampled from, entropies, values.

Shapes: N answers, T tokens of the longest answer (of flat tensors: B * L), C tokens of a chunk, D hidden size,
V vocabulary (padded, or one rank's slice of it).

Trainer and engine apply the same temperature, top-k and top-p, so that the ratio of new and old probabilities is that
of one distribution. Logits exist by chunk only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from finecut.trainer.models.decoder import Decoder
from finecut.trainer.ops.cross_entropy import HeadConfig, TrainedTokens, token_log_probabilities
from finecut.trainer.parallel import gathering
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes.documents import head_config, inputs_of
from finecut.trainer.rl.rows import AnswerBatch
from finecut.trainer.rollout.sampling import SamplingParameters, restricted_log_probabilities, restricted_log_softmax

# Of the tokens of a chunk, where distributions exist in FP32, several at a time.
_SHARE = 8


@dataclasses.dataclass(frozen=True)
class SampledLogProbabilities:
    """Reads a decoder out as the log-probability of each target, flat, in FP32; 0 where there is none."""

    targets_BL: Tensor
    sampling: SamplingParameters

    def __call__(self, model: Decoder, hidden_BLD: Tensor) -> Tensor:
        hidden_TD, weight_VD = hidden_BLD.flatten(0, 1), model.head_weight()
        config = dataclasses.replace(head_config(model), temperature=self.sampling.temperature)
        if not self.sampling.is_truncated:
            return token_log_probabilities(hidden_TD, weight_VD, self.targets_BL.flatten(), config)
        trained = TrainedTokens.of(self.targets_BL)
        found_N = [
            # The logits of a chunk are computed again in the backward pass rather than kept.
            checkpoint(
                _restricted, hidden_TD[position_C], weight_VD, target_C, config, self.sampling, use_reentrant=False
            )
            for position_C, target_C in _chunks(trained, config.chunk_of(weight_VD))
        ]
        result_T = hidden_TD.new_zeros(len(hidden_TD), dtype=torch.float32) + 0 * hidden_TD.sum().float()
        return result_T.index_put((trained.position_N,), torch.cat(found_N)) if found_N else result_T


def _restricted(
    hidden_CD: Tensor, weight_VD: Tensor, target_C: Tensor, config: HeadConfig, sampling: SamplingParameters
) -> Tensor:
    return restricted_log_probabilities(_logits(hidden_CD, weight_VD, config), target_C, sampling)


@dataclasses.dataclass(frozen=True)
class LogProbabilitiesAndEntropies:
    """Reads a decoder out as [2, B * L]: log-probability of the target, and entropy of the distribution sampled from.

    Without gradients. 0 where there is no target.
    """

    targets_BL: Tensor
    sampling: SamplingParameters

    def __call__(self, model: Decoder, hidden_BLD: Tensor) -> Tensor:
        hidden_TD, weight_VD = hidden_BLD.flatten(0, 1), model.head_weight()
        config = head_config(model)
        trained = TrainedTokens.of(self.targets_BL)
        found_2T = torch.zeros(2, len(hidden_TD), device=hidden_TD.device)
        for position_C, target_C in _chunks(trained, max(1, config.chunk_of(weight_VD) // _SHARE)):
            logits_CV = _logits(hidden_TD[position_C], weight_VD, config)
            if config.slice is None:
                found_2C = _whole(logits_CV, target_C, self.sampling)
            else:
                found_2C = _split(logits_CV, target_C, self.sampling.temperature, config)
            found_2T[:, position_C] = found_2C
        return found_2T


def _whole(logits_CV: Tensor, target_C: Tensor, sampling: SamplingParameters) -> Tensor:
    log_probs_CV = restricted_log_softmax(logits_CV, target_C, sampling)
    chosen_C = log_probs_CV.gather(-1, target_C[:, None])[:, 0]
    # Tokens that are never sampled add nothing, and -inf * 0 must not be NaN.
    entropy_C = -(log_probs_CV.exp() * log_probs_CV.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
    return torch.stack([chosen_C, entropy_C])


def _split(logits_CV: Tensor, target_C: Tensor, temperature: float, config: HeadConfig) -> Tensor:
    """As `_whole`, of the whole distribution, where this rank has a slice of the vocabulary. Collective."""
    assert config.slice is not None
    logits_CV = logits_CV / temperature
    own_C = config.slice.targets(target_C, logits_CV.shape[1])
    own_logit_C = logits_CV.gather(-1, own_C.clamp(min=0)[:, None])[:, 0].where(own_C >= 0, 0)
    log_normalizer_C, target_logit_C = config.slice.combine(logits_CV.logsumexp(-1), own_logit_C)
    # H = log Z - E[logit]
    probabilities_CV = (logits_CV - log_normalizer_C[:, None]).exp()
    expected_C = config.slice.sum((probabilities_CV * logits_CV).sum(-1))
    return torch.stack([target_logit_C - log_normalizer_C, log_normalizer_C - expected_C])


def _logits(hidden_CD: Tensor, weight_VD: Tensor, config: HeadConfig) -> Tensor:
    """[C, vocabulary of this rank] in FP32, capped, without padding."""
    size = config.vocabulary_size
    if config.slice is not None:
        size = config.slice.size_of(size, weight_VD.shape[0])
    logits_CV = (hidden_CD @ weight_VD.T.to(hidden_CD.dtype))[:, :size].float()
    return logits_CV if config.soft_cap is None else config.soft_cap * torch.tanh(logits_CV / config.soft_cap)


def _chunks(trained: TrainedTokens, size: int) -> list[tuple[Tensor, Tensor]]:
    """Positions and targets, a chunk at a time; none where nothing is trained."""
    chunks = zip(trained.position_N.split(size), trained.target_N.split(size), strict=True)
    return [chunk for chunk in chunks if len(chunk[0])]


@torch.no_grad()
def log_probabilities_and_entropies(
    model: Decoder, batches: Sequence[AnswerBatch], mask_NT: Tensor, sampling: SamplingParameters, devices: Devices
) -> tuple[Tensor, Tensor]:
    """[N, T] each, the same on every rank; 0 outside the mask. Collective."""
    found_2NT = torch.zeros(2, *mask_NT.shape, device=devices.device)
    model.eval()
    for batch in batches:
        found_2T = model(*inputs_of(batch), read_out=LogProbabilitiesAndEntropies(batch.targets_BL, sampling))
        for found_T, into_NT in zip(found_2T, found_2NT, strict=True):
            batch.put_back(found_T, into_NT)
    _finish(model)
    log_probs_NT, entropies_NT = _of_all_ranks(found_2NT, devices)
    return log_probs_NT, entropies_NT


@torch.no_grad()
def log_probabilities(
    model: Decoder, batches: Sequence[AnswerBatch], mask_NT: Tensor, sampling: SamplingParameters, devices: Devices
) -> Tensor:
    """[N, T], the same on every rank; 0 outside the mask. Collective."""
    found_NT = torch.zeros(mask_NT.shape, device=devices.device)
    model.eval()
    for batch in batches:
        batch.put_back(model(*inputs_of(batch), read_out=SampledLogProbabilities(batch.targets_BL, sampling)), found_NT)
    _finish(model)
    return _of_all_ranks(found_NT, devices)


@torch.no_grad()
def values(model: Decoder, batches: Sequence[AnswerBatch], mask_NT: Tensor, devices: Devices) -> Tensor:
    """[N, T] of a model with a scalar head: what it expects before it sees the token. Collective, as above."""
    found_NT = torch.zeros(mask_NT.shape, device=devices.device)
    model.eval()
    for batch in batches:
        batch.put_back(model(*inputs_of(batch)).flatten(), found_NT)
    _finish(model)
    return _of_all_ranks(found_NT, devices)


def _finish(model: Decoder) -> None:
    gathering.reshard(model)
    if any(parameter.requires_grad for parameter in model.parameters()):
        model.train()


def _of_all_ranks(values: Tensor, devices: Devices) -> Tensor:
    """Each token is computed by one data rank; ranks that split matrices have the same numbers."""
    if devices.world_size > 1:
        dist.all_reduce(values)
        values /= devices.tensor_size
    return values
