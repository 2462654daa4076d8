"""What models say of sampled tokens: log-probabilities under the distribution sampled from, entropies, values.

Shapes: N answers, T tokens of the longest answer (of flat tensors: B * L), C tokens of a chunk, D hidden size,
V vocabulary.

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


@dataclasses.dataclass(frozen=True)
class SampledLogProbabilities:
    """Reads a decoder out as the log-probability of each target, flat, in FP32; 0 where there is none."""

    targets_BL: Tensor
    sampling: SamplingParameters

    def __call__(self, model: Decoder, hidden_BLD: Tensor) -> Tensor:
        return _read(model, hidden_BLD, self.targets_BL, self.sampling)


@dataclasses.dataclass(frozen=True)
class LogProbabilitiesAndEntropies:
    """Reads a decoder out as [2, B * L]: as above, and entropies of the distribution sampled from, without gradient."""

    targets_BL: Tensor
    sampling: SamplingParameters

    def __call__(self, model: Decoder, hidden_BLD: Tensor) -> Tensor:
        entropies_T = torch.zeros(self.targets_BL.numel(), device=hidden_BLD.device)
        log_probs_T = _read(model, hidden_BLD, self.targets_BL, self.sampling, entropies_T)
        return torch.stack([log_probs_T, entropies_T])


def _read(
    model: Decoder,
    hidden_BLD: Tensor,
    targets_BL: Tensor,
    sampling: SamplingParameters,
    entropies_T: Tensor | None = None,
) -> Tensor:
    """[B * L] log-probabilities; entropies are written to `entropies_T`."""
    hidden_TD, weight_VD = hidden_BLD.flatten(0, 1), model.head_weight()
    config = dataclasses.replace(head_config(model), temperature=sampling.temperature)
    if not sampling.is_truncated:
        return token_log_probabilities(hidden_TD, weight_VD, targets_BL.flatten(), config, entropies_T)
    trained = TrainedTokens.of(targets_BL)
    found_N = []
    for position_C, target_C in _chunks(trained, config.chunk_of(weight_VD)):
        # The logits of a chunk are computed again in the backward pass rather than kept.
        arguments = (hidden_TD[position_C], weight_VD, target_C, config, sampling, entropies_T is not None)
        found_2C = checkpoint(_restricted, *arguments, use_reentrant=False)
        found_N.append(found_2C[0])
        if entropies_T is not None:
            entropies_T[position_C] = found_2C[1].detach()
    result_T = hidden_TD.new_zeros(len(hidden_TD), dtype=torch.float32) + 0 * hidden_TD.sum().float()
    return result_T.index_put((trained.position_N,), torch.cat(found_N)) if found_N else result_T


def _restricted(
    hidden_CD: Tensor,
    weight_VD: Tensor,
    target_C: Tensor,
    config: HeadConfig,
    sampling: SamplingParameters,
    with_entropies: bool,
) -> Tensor:
    """[2, C], or [1, C] without entropies."""
    logits_CV = _logits(hidden_CD, weight_VD, config)
    if not with_entropies:
        return restricted_log_probabilities(logits_CV, target_C, sampling)[None]
    log_probs_CV = restricted_log_softmax(logits_CV, target_C, sampling)
    chosen_C = log_probs_CV.gather(-1, target_C[:, None])[:, 0]
    known_CV = log_probs_CV.detach()
    # Tokens that are never sampled add nothing, and -inf * 0 must not be NaN.
    entropy_C = -(known_CV.exp() * known_CV.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
    return torch.stack([chosen_C, entropy_C])


def _logits(hidden_CD: Tensor, weight_VD: Tensor, config: HeadConfig) -> Tensor:
    """[C, V] in FP32, capped, without padding."""
    assert config.slice is None  # validation refuses truncated sampling where the vocabulary is split
    logits_CV = (hidden_CD @ weight_VD.T.to(hidden_CD.dtype))[:, : config.vocabulary_size].float()
    return logits_CV if config.soft_cap is None else config.soft_cap * torch.tanh(logits_CV / config.soft_cap)


def _chunks(trained: TrainedTokens, size: int) -> list[tuple[Tensor, Tensor]]:
    """Positions and targets, a chunk at a time; none where nothing is trained."""
    chunks = zip(trained.position_N.split(size), trained.target_N.split(size), strict=True)
    return [chunk for chunk in chunks if len(chunk[0])]


class ScoreBuffer:
    """Log-probabilities and entropies of a batch of rollouts, put in by micro-batch."""

    def __init__(self, mask_NT: Tensor, devices: Devices) -> None:
        self._found_2NT = torch.zeros(2, *mask_NT.shape, device=devices.device)
        self._devices = devices

    def put(self, batch: AnswerBatch, found_2T: Tensor) -> None:
        """What `LogProbabilitiesAndEntropies` read of a micro-batch."""
        for found_T, into_NT in zip(found_2T.detach(), self._found_2NT, strict=True):
            batch.put_back(found_T, into_NT)

    def gathered(self) -> tuple[Tensor, Tensor]:
        """[N, T] each, the same on every rank; 0 outside the mask. Collective; once, after the last `put`."""
        log_probs_NT, entropies_NT = _of_all_ranks(self._found_2NT, self._devices)
        return log_probs_NT, entropies_NT


@torch.no_grad()
def log_probabilities_and_entropies(
    model: Decoder, batches: Sequence[AnswerBatch], mask_NT: Tensor, sampling: SamplingParameters, devices: Devices
) -> tuple[Tensor, Tensor]:
    """[N, T] each, the same on every rank; 0 outside the mask. Collective."""
    buffer = ScoreBuffer(mask_NT, devices)
    model.eval()
    for batch in batches:
        buffer.put(batch, model(*inputs_of(batch), read_out=LogProbabilitiesAndEntropies(batch.targets_BL, sampling)))
    _finish(model)
    return buffer.gathered()


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
