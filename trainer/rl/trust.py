"""Whether what the engines say of their samples can be believed, and the probabilities that learning starts from.

Trainer and engine compute the log-probability of every sampled token; where they differ more than the job allows,
the run stops. Tokens that the trainer's present weights sampled are then learnt from with the engine's numbers, which
are exactly what was sampled from; those of an older policy with the trainer's, corrected by importance weights.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from finecut.trainer.models.decoder import Decoder
from finecut.trainer.rl import policy_loss
from finecut.trainer.rl.experience import Experience
from finecut.trainer.rl.rollouts import Rollouts
from finecut.trainer.rollout import drift
from finecut.trainer.rollout.drift import Drift
from finecut.trainer.rollout.weight_source import DecoderSource


@dataclasses.dataclass(frozen=True)
class OldPolicy:
    """What the optimisation passes start from, token by token. `importance` is 1 for tokens of the present policy."""

    log_probs: Tensor
    importance: Tensor


def old_policy(trainer_log_probs: Tensor, behaviour_log_probs: Tensor, is_stale: Tensor, cap: float) -> OldPolicy:
    """See above; tensors of one shape. `cap`: most that a token of an older policy weighs."""
    weights = policy_loss.importance_weights(trainer_log_probs, behaviour_log_probs, cap)
    return OldPolicy(
        log_probs=torch.where(is_stale, trainer_log_probs.detach(), behaviour_log_probs),
        importance=weights.where(is_stale, 1.0),
    )


def _drift(experience: Experience, trainer_log_probs_NT: Tensor) -> Drift:
    """As `drift.measure`, without a loop over tokens. A NaN stays one, and passes for no small difference."""
    is_stale_NT = experience.staleness_NT > 0
    difference_NT = (experience.behaviour_log_probs_NT - trainer_log_probs_NT).abs().double()
    difference_M = difference_NT[experience.mask_NT & ~is_stale_NT]
    if not len(difference_M):
        return Drift(0, 0.0, 0.0, int(is_stale_NT.sum()))
    mean, worst = torch.stack([difference_M.mean(), difference_M.max()]).tolist()
    return Drift(len(difference_M), mean, worst, int(is_stale_NT.sum()))


def check(
    experience: Experience,
    trainer_log_probs_NT: Tensor,
    version: int,
    limit: float,
    policy: Decoder,
    rollouts: Rollouts,
    engine_type: torch.dtype,
) -> Drift:
    """How far trainer and engines are apart. Collective.

    Raises DriftError, which names the layers that differ, where that is more than `limit` nats a token on average.
    """
    found = _drift(experience, trainer_log_probs_NT)
    if found.mean_difference <= limit:
        return found
    ours = [row[: len(s.answer_ids)] for row, s in zip(trainer_log_probs_NT.tolist(), experience.samples, strict=True)]
    trainer_checksums = DecoderSource(policy, engine_type).checksums()
    engine_checksums = rollouts.engine_checksums()
    drift.check(experience.samples, ours, version, limit, trainer_checksums, engine_checksums)
    return found
