"""What the steps of PPO and GRPO share: judging samples, the reference, minibatches, records."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from finecut.proto.config import UserError
from finecut.trainer.metrics.recorder import Recorder
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import ModelSource, locate_model
from finecut.trainer.recipes import frozen
from finecut.trainer.recipes.pairs import without_adapters
from finecut.trainer.rewards.reward_set import RewardSet
from finecut.trainer.rl import kl, learner, rows, token_scores, trust
from finecut.trainer.rl.config import KlConfig, ReinforcementConfig
from finecut.trainer.rl.experience import Experience
from finecut.trainer.rl.held_out import HeldOutRewards
from finecut.trainer.rl.kl import KlController
from finecut.trainer.rl.rows import AnswerBatch
from finecut.trainer.rl.sample_log import SampleLog
from finecut.trainer.rl.scoring import Scored
from finecut.trainer.rl.session import Session
from finecut.trainer.rl.trust import OldPolicy


@dataclasses.dataclass(frozen=True)
class Judged:
    """A batch of rollouts, and what the policy itself says of it."""

    scored: Scored
    experience: Experience
    # This rank's share of all answers.
    batches: list[AnswerBatch]
    # Of the trainer; [N, T].
    entropies_NT: Tensor
    old: OldPolicy
    metrics: dict[str, float]

    @property
    def num_tokens(self) -> float:
        """Tokens that the policy sampled."""
        return float(self.experience.mask_NT.sum())

    def mean(self, values_NT: Tensor) -> float:
        """Over sampled tokens."""
        mask_NT = self.experience.mask_NT
        return float(values_NT.double().where(mask_NT, 0).sum() / mask_NT.sum().clamp(min=1))


def judge(s: Session, scored: Scored, step: int) -> Judged:
    """The policy's log-probabilities and entropies, held against the engines'. Collective. Raises DriftError."""
    s.liveness.at(step, "score")
    began = time.perf_counter()
    config, setup = s.setup.config, s.setup
    experience = scored.experience(step, setup)
    samples, mask_NT, sampling = experience.samples, experience.mask_NT, config.rollout.sampling
    batches = rows.micro_batches(
        samples, range(len(samples)), row_tokens_of(s), config.training.micro_blocks, s.devices
    )
    log_probs_NT, entropies_NT = token_scores.log_probabilities_and_entropies(
        s.policy.model, batches, mask_NT, sampling, s.devices
    )
    engine_type = getattr(torch, setup.plan.engine.number_type)
    limit = config.rollout.max_logprob_drift
    found = trust.check(experience, log_probs_NT, step - 1, limit, s.policy.model, s.rollouts, engine_type)
    cap = config.update.importance_cap if isinstance(config, ReinforcementConfig) else 1.0
    old = trust.old_policy(experience, log_probs_NT, cap)
    judged = Judged(scored, experience, batches, entropies_NT, old, experience.metrics() | scored.metrics())
    judged.metrics.update(
        entropy=judged.mean(entropies_NT),
        drift=found.mean_difference,
        drift_max=found.max_difference,
        drift_tokens=float(found.num_tokens),
        importance_weight=judged.mean(old.importance_NT),
        score_seconds=time.perf_counter() - began,
    )
    return judged


def row_tokens_of(s: Session) -> int:
    """Tokens of a row of the trainer's micro-batches."""
    return rows.row_tokens(s.setup.max_sequence_tokens)


def minibatches(s: Session, judged: Judged, step: int) -> Iterator[list[AnswerBatch]]:
    """This rank's micro-batches of each minibatch of each pass."""
    config: ReinforcementConfig = s.setup.config
    s.liveness.at(step, "train")
    samples, update, training = judged.experience.samples, config.update, config.training
    if update.passes == update.minibatches == 1:
        yield judged.batches
        return
    chosen_of = learner.minibatches(
        len(samples), config.group_size, update.minibatches, update.passes, training.seed, step
    )
    for chosen in chosen_of:
        yield rows.micro_batches(samples, chosen, row_tokens_of(s), training.micro_blocks, s.devices)


class Roles:
    """The reference, which the policy is held near, and by how much."""

    def __init__(self, kl_config: KlConfig | None, reference: Decoder | None, policy: Decoder) -> None:
        """`reference` None with a KL term: the policy without its adapters."""
        self._config = kl_config
        self._reference = reference
        self._policy = policy
        config = kl_config or KlConfig(0.0, None, in_loss=False)
        self.kl = KlController(config.coefficient, config.target, config.horizon)

    @classmethod
    def load(cls, s: Session, kl_config: KlConfig | None) -> Roles:
        """Loads a frozen copy where there is a KL term and adapters cannot be switched off instead. Collective."""
        policy = s.policy.model
        named = s.setup.place.roles.get("reference")
        if kl_config is None or (named is None and policy.lora and s.setup.source.adapter is None):
            return cls(kl_config, None, policy)
        with s.phase("reference"):
            source = locate_model(named) if named else s.setup.source
            return cls(kl_config, load_frozen_role(s, source, "reference_model"), policy)

    def reference_log_probabilities(self, judged: Judged, s: Session) -> Tensor | None:
        """[N, T], under the same temperature and truncation; None without a KL term. Collective."""
        if self._config is None:
            return None
        arguments = (judged.batches, judged.experience.mask_NT, s.setup.config.rollout.sampling, s.devices)
        if self._reference is not None:
            return token_scores.log_probabilities(self._reference, *arguments)
        with without_adapters(self._policy):
            return token_scores.log_probabilities(self._policy, *arguments)

    def update(self, judged: Judged, reference_NT: Tensor | None) -> dict[str, float]:
        """Steers the weight of the KL term, after a step. Returns what it measured."""
        if reference_NT is None:
            return {}
        mask_NT, old_NT = judged.experience.mask_NT, judged.old.log_probs_NT
        kl_N = kl.estimate(old_NT, reference_NT, kl.Estimator.K1).double().where(mask_NT, 0).sum(1)
        found = {
            "kl_per_sequence": float(kl_N.mean()),
            "kl": judged.mean(kl.estimate(old_NT, reference_NT, kl.Estimator.K3)),
            "kl_coefficient": self.kl.coefficient,
        }
        self.kl.update(found["kl_per_sequence"], len(kl_N))
        return found


def load_frozen_role(s: Session, source: ModelSource, field: str) -> Decoder:
    """A frozen language model with the policy's vocabulary. Collective. Raises UserError where it has another."""
    config = DecoderConfig.from_folder(source.base)
    setup = s.setup
    if config.vocabulary_size != setup.decoder_config.vocabulary_size:
        raise UserError(
            f"{field}: {source.base} has a vocabulary of {config.vocabulary_size:,} tokens and the policy one of"
            f" {setup.decoder_config.vocabulary_size:,}; use a model with the policy's tokenizer"
        )
    return frozen.load_frozen(source, config, setup.config.training, setup.precision, s.devices)


def measure_held_out(s: Session, rewards: RewardSet) -> None:
    """Where the job asks for it, rewards of held-out prompts are measured while training."""
    if s.setup.held_out:
        s.measurements.append(HeldOutRewards(rewards, s.setup))


def sample_log(s: Session, recorder: Recorder) -> SampleLog | None:
    """Rank 0's."""
    folder: Path = s.setup.place.events.parent
    return SampleLog(folder, s.state.step, recorder) if s.devices.is_main else None


def record(
    s: Session, log: SampleLog | None, judged: Judged, advantages_NT: Tensor, reference_NT: Tensor | None, step: int
) -> None:
    """Samples, and how token-level numbers are spread."""
    if log is None or step % s.setup.config.training.metrics_every_steps:
        return
    log.write(step, judged.scored.answers, judged.experience, judged.scored.parts)
    mask_NT = judged.experience.mask_NT
    s.recorder.histogram("tokens/advantage", step, advantages_NT[mask_NT])
    s.recorder.histogram("tokens/entropy", step, judged.entropies_NT[mask_NT])
    s.recorder.histogram("answers/reward", step, judged.experience.rewards_N[~judged.experience.rewards_N.isnan()])
    if reference_NT is not None:
        kl_NT = kl.estimate(judged.old.log_probs_NT, reference_NT, kl.Estimator.K1)
        s.recorder.histogram("tokens/kl", step, kl_NT[mask_NT])
    for problem in judged.scored.problems:
        s.recorder.message(f"not scored: {problem}")
