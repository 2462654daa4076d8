"""Proximal policy optimisation (Schulman et al., 2017) on a language model (Ziegler et al., 2019).

    prompts --> engines --> answers --> rewards (at the last token) - KL to the reference (at every token)
                   ^           |                          v
                   |           +--> values (critic) --> generalised advantages, returns
                   |           v                          v               v
                   |        log-probabilities ----> clipped loss --> policy, clipped squared error --> critic
                   +------------------- weights of the next version ----+

    collect   consumes: prompts, engines at a version; produces: scored answers on every rank
              waits for: the engines, the rewards; unblocks: learn
    learn     consumes: scored answers; produces: the next version of policy and critic
              waits for: nothing outside the ranks; unblocks: publish
    publish   consumes: the policy; produces: engines at its version; waits for: their checksums; unblocks: collect

Differs from common practice: policy and critic are two models, laid out over the same ranks; the loss is normalised by
the sampled tokens of the whole minibatch; old log-probabilities are the engines' own (see trust.py). Advantages are
normalised over the whole batch, once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from finecut.proto.config import UserError
from finecut.trainer.config import StagePlace
from finecut.trainer.liveness.liveness import Liveness
from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.heads import head_of
from finecut.trainer.models.huggingface import locate_model
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import supervised
from finecut.trainer.recipes.supervised import TrainingResult
from finecut.trainer.rewards.config import RewardConfig
from finecut.trainer.rl import advantages, judging, kl, opening, reinforcement, scoring, token_scores
from finecut.trainer.rl.config import PpoConfig
from finecut.trainer.rl.judging import Judged
from finecut.trainer.rl.learner import Learner, mean_of
from finecut.trainer.rl.policy_objective import ValueObjective, ValueTargets
from finecut.trainer.rl.session import Session


def run(
    config: PpoConfig, rewards: Sequence[RewardConfig], place: StagePlace, devices: Devices, liveness: Liveness
) -> TrainingResult:
    """Trains policy and critic, and writes the policy to `place.artifact`. Collective. Raises as `grpo.run` does."""
    with opening.opened(config, place, devices, liveness) as s, reinforcement.open_rewards(s, rewards) as reward_set:
        roles = reinforcement.Roles.load(s)
        critic = s.learners["critic"] = load_critic(s)
        with s.started():
            log = reinforcement.sample_log(s)
            for step in s.steps():
                scored = scoring.score(s.rollouts.collect(step), reward_set, s.setup)
                judged = judging.judge(s, scored, step)
                s.rollouts.rest()
                reference_NT = roles.reference_log_probabilities(judged, s)
                values_NT = token_scores.values(critic.model, judged.batches, judged.experience.mask_NT, s.devices)
                rewards_NT = token_rewards(judged, reference_NT, roles.kl.coefficient, config)
                advantages_NT, returns_NT = estimate(judged, rewards_NT, values_NT, config)
                targets = ValueTargets(values_NT, returns_NT, judged.experience.learnt_mask)
                learnt = learn(s, critic, judged, advantages_NT, targets, reference_NT, roles.kl.coefficient, step)
                metrics = judged.metrics | {"value": judged.mean(values_NT)} | learnt
                metrics |= roles.update(judged, reference_NT)
                reinforcement.record(s, log, judged, advantages_NT, reference_NT, step, rewards_NT)
                s.finish_step(step, metrics, judged.num_tokens)
            return s.finish()


def load_critic(s: Session) -> Learner:
    """A model with a scalar head, all of it trained (with LoRA: adapters and head). Collective."""
    config: PpoConfig = s.setup.config
    source = locate_model(s.setup.place.roles.get("critic") or s.setup.place.model)
    decoder_config = DecoderConfig.from_folder(source.base)
    head = head_of(source)
    if head is not None and not head.is_scalar:
        raise UserError(
            f"critic: {source.base} has a head of {head.num_outputs} outputs and a critic has one; start from a"
            " language model or a reward model"
        )
    with s.start.phase("critic"):
        model = supervised.build_model(
            config, decoder_config, source, s.setup.precision, s.devices, OutputHead(1, initial_std=0.0)
        )
    peak = config.critic_learning_rate or config.training.optimizer.learning_rate
    return Learner(model, config.training, peak, s.setup.precision, s.setup.last_step, s.devices)


def token_rewards(judged: Judged, reference_NT: Tensor | None, kl_coefficient: float, config: PpoConfig) -> Tensor:
    """[N, T]: the answer's reward at its last sampled token, less each token's KL where that is in the reward."""
    experience = judged.experience
    rewards_NT = experience.rewards_N.nan_to_num()[:, None] * experience.last_token
    if reference_NT is None or config.update.kl is None or config.update.kl.in_loss:
        return rewards_NT
    kl_NT = kl.estimate(judged.old_log_probs, reference_NT, kl.Estimator.K1)
    return rewards_NT - kl_coefficient * kl_NT.where(experience.mask_NT, 0)


def estimate(judged: Judged, rewards_NT: Tensor, values_NT: Tensor, config: PpoConfig) -> tuple[Tensor, Tensor]:
    """Advantages, normalised where asked, and returns; [N, T] each."""
    mask_NT = judged.experience.learnt_mask
    advantages_NT, returns_NT = advantages.gae(rewards_NT, values_NT, mask_NT, config.gamma, config.gae_lambda)
    if config.normalize_advantages:
        advantages_NT = advantages.normalize(advantages_NT, mask_NT)  # every rank holds all of them
    return advantages_NT, returns_NT


def learn(
    s: Session,
    critic: Learner,
    judged: Judged,
    advantages_NT: Tensor,
    values: ValueTargets,
    reference_NT: Tensor | None,
    kl_coefficient: float,
    step: int,
) -> dict[str, float]:
    """Changes policy and critic: all passes over all minibatches."""
    config: PpoConfig = s.setup.config
    began = time.perf_counter()
    policy_objective = reinforcement.policy_objective(s, judged, advantages_NT, reference_NT, kl_coefficient, step)
    value_objective = ValueObjective(values, config.value_clip)
    found = []
    for batches in reinforcement.minibatches(s, judged, step):
        of_policy = s.policy.update(batches, policy_objective, step)
        of_critic = critic.update(batches, value_objective, step)
        found.append(of_policy | {f"critic_{name}": value for name, value in of_critic.items()})
    return mean_of(found) | {"train_seconds": time.perf_counter() - began}
