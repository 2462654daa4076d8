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
    """What the optimisation passes start from, [N, T]. `importance_NT` is 1 for tokens of the present policy."""

    log_probs_NT: Tensor
    importance_NT: Tensor


def old_policy(experience: Experience, trainer_log_probs_NT: Tensor, cap: float) -> OldPolicy:
    """See above. `cap`: most that a token of an older policy weighs."""
    is_stale_NT = experience.staleness_NT > 0
    behaviour_NT = experience.behaviour_log_probs_NT
    weights_NT = policy_loss.importance_weights(trainer_log_probs_NT, behaviour_NT, cap)
    return OldPolicy(
        log_probs_NT=torch.where(is_stale_NT, trainer_log_probs_NT, behaviour_NT),
        importance_NT=weights_NT.where(is_stale_NT, 1.0),
    )


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
    ours = [row[: len(s.answer_ids)] for row, s in zip(trainer_log_probs_NT.tolist(), experience.samples, strict=True)]
    found = drift.measure(experience.samples, ours, version)
    if found.mean_difference <= limit:
        return found
    trainer_checksums = DecoderSource(policy, engine_type).checksums()
    engine_checksums = rollouts.engine_checksums()
    drift.check(experience.samples, ours, version, limit, trainer_checksums, engine_checksums)
    return found
