"""What the policy itself says of a batch of rollouts, held against what the engines said.

Where a batch is learnt from once, and in one piece, the training pass says it: a pass before would compute the same
log-probabilities twice. What it says is then judged before the optimizer steps.

    passes > 1 or minibatches > 1    scoring pass -> settle -> training passes
    else                             training pass -> settle -> optimizer
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from finecut.trainer.rl import row_size, rows, token_scores, trust
from finecut.trainer.rl.config import ReinforcementConfig
from finecut.trainer.rl.experience import Experience
from finecut.trainer.rl.rows import AnswerBatch
from finecut.trainer.rl.scoring import Scored
from finecut.trainer.rl.session import Session
from finecut.trainer.rl.token_scores import ScoreBuffer
from finecut.trainer.rollout.sample import Sample


@dataclasses.dataclass
class Judged:
    """A batch of rollouts. `log_probs_NT` and `entropies_NT` are the trainer's, [N, T]; None until settled."""

    scored: Scored
    experience: Experience
    # This rank's share of all answers.
    batches: list[AnswerBatch]
    metrics: dict[str, float]
    log_probs_NT: Tensor | None = None
    entropies_NT: Tensor | None = None

    @property
    def num_tokens(self) -> float:
        """Tokens that the policy sampled."""
        return float(self.experience.mask_NT.sum())

    @property
    def is_stale(self) -> Tensor:
        """[N, T]: tokens of an older policy than the trainer's."""
        return self.experience.staleness_NT > 0

    @property
    def old_log_probs(self) -> Tensor:
        """[N, T]: what learning starts from (see trust.py). Until settled, where nothing is stale."""
        behaviour_NT = self.experience.behaviour_log_probs_NT
        if self.log_probs_NT is None:
            return behaviour_NT
        return torch.where(self.is_stale, self.log_probs_NT, behaviour_NT)

    def mean(self, values_NT: Tensor) -> float:
        """Over sampled tokens."""
        mask_NT = self.experience.mask_NT
        return float(values_NT.double().where(mask_NT, 0).sum() / mask_NT.sum().clamp(min=1))


def judge(s: Session, scored: Scored, step: int) -> Judged:
    """A batch, settled where it cannot wait for the training pass. Collective. Raises DriftError."""
    s.at(step, "score")
    began = time.perf_counter()
    config, experience = s.setup.config, scored.experience(step, s.setup)
    samples, mask_NT = experience.samples, experience.mask_NT
    s.monitor.sampled(samples)
    batches = micro_batches(s, samples, range(len(samples)))
    judged = Judged(scored, experience, batches, experience.metrics() | scored.metrics())
    if not _waits(config, judged):
        log_probs_NT, entropies_NT = token_scores.log_probabilities_and_entropies(
            s.policy.model, batches, mask_NT, config.rollout.sampling, s.devices
        )
        settle(s, judged, log_probs_NT, entropies_NT, step)
    judged.metrics["score_seconds"] = time.perf_counter() - began
    return judged


def settle(s: Session, judged: Judged, log_probs_NT: Tensor, entropies_NT: Tensor, step: int) -> None:
    """Takes in what the policy says, while its weights are those that sampled. Collective. Raises DriftError."""
    config, experience = s.setup.config, judged.experience
    engine_type = getattr(torch, s.setup.plan.engine.number_type)
    limit = config.rollout.max_logprob_drift
    drift = trust.check(experience, log_probs_NT, step - 1, limit, s.policy.model, s.rollouts, engine_type)
    judged.log_probs_NT, judged.entropies_NT = log_probs_NT, entropies_NT
    cap = config.update.importance_cap if isinstance(config, ReinforcementConfig) else 1.0
    old = trust.old_policy(log_probs_NT, experience.behaviour_log_probs_NT, judged.is_stale, cap)
    judged.metrics.update(
        entropy=judged.mean(entropies_NT),
        drift=drift.mean_difference,
        drift_max=drift.max_difference,
        drift_tokens=float(drift.num_tokens),
        importance_weight=judged.mean(old.importance),
    )


class TrainingPass:
    """The first pass over a batch, and the only one, which settles it; see policy_objective.FirstPass."""

    def __init__(self, s: Session, judged: Judged, step: int) -> None:
        self._session, self._judged, self._step = s, judged, step
        self._buffer = ScoreBuffer(judged.experience.mask_NT, s.devices)

    def put(self, batch: AnswerBatch, found_2T: Tensor) -> None:
        """Takes in a micro-batch."""
        self._buffer.put(batch, found_2T)

    def done(self) -> None:
        """Settles the batch. Collective. Raises DriftError."""
        log_probs_NT, entropies_NT = self._buffer.gathered()
        settle(self._session, self._judged, log_probs_NT, entropies_NT, self._step)


def micro_batches(s: Session, samples: Sequence[Sample], chosen: Sequence[int]) -> list[AnswerBatch]:
    """This rank's share of the `chosen` samples, packed."""
    devices = s.devices
    own = -(-len(chosen) // devices.data_size)
    capacity = row_size.row_tokens(s.setup.max_sequence_tokens, own, devices.device.type == "cuda")
    return rows.micro_batches(samples, chosen, capacity, s.setup.config.training.micro_blocks, devices)


def _waits(config: object, judged: Judged) -> bool:
    """Whether the training pass can say it: it is the only one, and nothing before it asks about stale tokens."""
    if not isinstance(config, ReinforcementConfig) or config.update.passes * config.update.minibatches > 1:
        return False
    has_kl_in_reward = config.update.kl is not None and not config.update.kl.in_loss
    return not (has_kl_in_reward and bool(judged.is_stale.any()))
