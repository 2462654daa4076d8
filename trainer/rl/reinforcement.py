"""What the steps of PPO and GRPO share: the reference, minibatches, the policy's objective, records."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import ModelSource, locate_model
from finecut.trainer.recipes import frozen
from finecut.trainer.recipes.pairs import without_adapters
from finecut.trainer.rewards.config import RewardConfig
from finecut.trainer.rewards.reward_set import RewardSet
from finecut.trainer.rl import judging, kl, learner, policy_loss, scoring, token_scores, token_table
from finecut.trainer.rl.config import KlConfig, ReinforcementConfig
from finecut.trainer.rl.held_out import HeldOutRewards
from finecut.trainer.rl.judging import Judged, TrainingPass
from finecut.trainer.rl.kl import KlController
from finecut.trainer.rl.policy_objective import PolicyObjective, PolicyTargets
from finecut.trainer.rl.rows import AnswerBatch
from finecut.trainer.rl.sample_log import SampleLog
from finecut.trainer.rl.session import Session


@contextlib.contextmanager
def open_rewards(s: Session, rewards: Sequence[RewardConfig]) -> Iterator[RewardSet]:
    """The rewards of a stage; measured of held-out prompts, too, where the job asks for it. Collective."""
    with s.start.phase("rewards"):
        found = scoring.open_rewards(rewards, s.setup.config, s.setup)
    s.kept["rewards"] = found
    if s.setup.held_out:
        s.measurements.append(HeldOutRewards(found, s.setup))
    with contextlib.closing(found):
        yield found


def minibatches(s: Session, judged: Judged, step: int) -> Iterator[list[AnswerBatch]]:
    """This rank's micro-batches of each minibatch of each pass."""
    config: ReinforcementConfig = s.setup.config
    s.at(step, "train")
    samples, update, training = judged.experience.samples, config.update, config.training
    if update.passes == update.minibatches == 1:
        yield judged.batches
        return
    chosen_of = learner.minibatches(
        len(samples), config.group_size, update.minibatches, update.passes, training.seed, step
    )
    for chosen in chosen_of:
        yield judging.micro_batches(s, samples, chosen)


def policy_objective(
    s: Session, judged: Judged, advantages_NT: Tensor, reference_NT: Tensor | None, kl_coefficient: float, step: int
) -> PolicyObjective:
    """What the policy minimises on this batch. Where the batch is not settled yet, the training pass settles it."""
    config: ReinforcementConfig = s.setup.config
    experience, update, sampling = judged.experience, config.update, config.rollout.sampling
    targets = PolicyTargets(
        behaviour_log_probs_NT=experience.behaviour_log_probs_NT,
        staleness_NT=experience.staleness_NT,
        advantages_NT=advantages_NT,
        weights_NT=policy_loss.token_weights(experience.learnt_mask, update.aggregation, sampling.max_new_tokens),
        trainer_log_probs_NT=judged.log_probs_NT,
        reference_log_probs_NT=reference_NT if update.kl is not None and update.kl.in_loss else None,
    )
    first_pass = TrainingPass(s, judged, step) if judged.log_probs_NT is None else None
    return PolicyObjective(update, sampling, targets, kl_coefficient, first_pass)


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
    def load(cls, s: Session) -> Roles:
        """Loads a frozen copy where there is a KL term and adapters cannot be switched off instead. Collective."""
        config: ReinforcementConfig = s.setup.config
        named, policy, reference = s.setup.place.roles.get("reference"), s.policy.model, None
        is_policy_below_adapters = named is None and policy.lora and s.setup.source.adapter is None
        if config.update.kl and not is_policy_below_adapters:
            with s.start.phase("reference"):
                source = locate_model(named) if named else s.setup.source
                reference = load_frozen_role(s, source)
        roles = cls(config.update.kl, reference, policy)
        s.kept["kl"] = roles.kl
        return roles

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
        mask_NT, old_NT = judged.experience.mask_NT, judged.old_log_probs
        kl_N = kl.estimate(old_NT, reference_NT, kl.Estimator.K1).double().where(mask_NT, 0).sum(1)
        found = {
            "kl_per_sequence": float(kl_N.mean()),
            "kl": judged.mean(kl.estimate(old_NT, reference_NT, kl.Estimator.K3)),
            "kl_coefficient": self.kl.coefficient,
        }
        self.kl.update(found["kl_per_sequence"], len(kl_N))
        return found


def load_frozen_role(s: Session, source: ModelSource) -> Decoder:
    """A frozen language model beside the policy. Collective."""
    config = DecoderConfig.from_folder(source.base)
    return frozen.load_frozen(source, config, s.setup.config.training, s.setup.precision, s.devices)


def sample_log(s: Session) -> SampleLog | None:
    """Rank 0's."""
    folder: Path = s.setup.place.events.parent
    return SampleLog(folder, s.state.step, s.recorder) if s.devices.is_main else None


def record(
    s: Session,
    log: SampleLog | None,
    judged: Judged,
    advantages_NT: Tensor,
    reference_NT: Tensor | None,
    step: int,
    rewards_NT: Tensor | None = None,
) -> None:
    """Samples, how token-level numbers are spread, and the first answer token by token.

    `rewards_NT` None: an answer's reward belongs to no token.
    """
    if log is None or step % s.setup.config.training.metrics_every_steps:
        return
    log.write(step, judged.scored.answers, judged.experience, judged.scored.parts)
    rewards_N = judged.experience.rewards_N
    s.recorder.histogram("answers/reward", step, rewards_N[~rewards_N.isnan()])
    for problem in judged.scored.problems:
        s.recorder.message(f"not scored: {problem}")
    of_tokens = {"advantage": advantages_NT}
    if rewards_NT is not None:
        of_tokens["reward"] = rewards_NT
    if reference_NT is not None:
        of_tokens["kl"] = kl.estimate(judged.old_log_probs, reference_NT, kl.Estimator.K1)
    _record_tokens(s, judged, of_tokens, step)


def _record_tokens(s: Session, judged: Judged, found: dict[str, Tensor], step: int) -> None:
    """Histograms of these numbers, [N, T], and of the entropy; the first answer's as a table."""
    experience, mask_NT = judged.experience, judged.experience.mask_NT
    log_probs_NT, entropies_NT = judged.log_probs_NT, judged.entropies_NT
    assert log_probs_NT is not None and entropies_NT is not None, "a batch that was learnt from is settled"
    found["entropy"] = entropies_NT
    for name, values_NT in found.items():
        s.recorder.histogram(f"tokens/{name}", step, values_NT[mask_NT])
    found |= {"log p": log_probs_NT, "log p of the engine": experience.behaviour_log_probs_NT}
    first = experience.samples[0]
    ids = [token for token, is_sampled in zip(first.answer_ids, first.loss_mask, strict=True) if is_sampled]
    columns = {name: values_NT[0][mask_NT[0]] for name, values_NT in found.items()}
    s.recorder.text("tokens/answer", step, token_table.table([s.setup.tokenizer.decode([i]) for i in ids], columns))
