"""Group relative policy optimisation (Shao et al., 2024), with Dr. GRPO (Liu et al., 2025) and DAPO (Yu et al., 2025).

    prompts --> engines --> groups of answers --> rewards --> advantages --+
                   ^             |                                        v
                   |             +--> log-probabilities: policy, reference --> clipped loss --> policy
                   +----------------------------- weights of the next version ------------------+

    collect   consumes: prompts, engines at a version; produces: scored groups on every rank
              waits for: the engines, the rewards; unblocks: learn
    learn     consumes: scored groups; produces: the policy's next version
              waits for: nothing outside the ranks; unblocks: publish
    publish   consumes: the policy; produces: engines at its version; waits for: their checksums; unblocks: collect
              (engines of their own collect meanwhile, up to max_staleness versions behind)

Differs from common practice: the loss is normalised over the whole minibatch of all ranks; answers are packed; old
log-probabilities are the engines' own, which are compared with the trainer's in every step (see trust.py); DAPO's
groups of equal rewards are replaced by groups of further prompts. With KL in the reward, the KL of the whole answer is
taken off its reward before groups are compared.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from finecut.trainer.config import StagePlace
from finecut.trainer.liveness.liveness import Liveness
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes.supervised import TrainingResult
from finecut.trainer.rewards.config import RewardConfig
from finecut.trainer.rewards.reward_set import RewardSet
from finecut.trainer.rl import advantages, judging, kl, opening, reinforcement, scoring
from finecut.trainer.rl.config import GrpoConfig
from finecut.trainer.rl.judging import Judged
from finecut.trainer.rl.learner import mean_of
from finecut.trainer.rl.scoring import Scored
from finecut.trainer.rl.session import Session


def run(
    config: GrpoConfig, rewards: Sequence[RewardConfig], place: StagePlace, devices: Devices, liveness: Liveness
) -> TrainingResult:
    """Trains from the newest checkpoint, or from the start, and writes the policy to `place.artifact`. Collective.

    Raises UserError for what the user can mend (DriftError and StaleSamplesError among it); FloatingPointError where
    the loss is not finite; Preempted when `liveness` was told to stop, once the checkpoint is written.
    """
    with opening.opened(config, place, devices, liveness) as s, reinforcement.open_rewards(s, rewards) as reward_set:
        roles = reinforcement.Roles.load(s)
        with s.started():
            log = reinforcement.sample_log(s)
            for step in s.steps():
                scored, drawn = collect(s, reward_set, step)
                judged = judging.judge(s, scored, step)
                s.rollouts.rest()
                reference_NT = roles.reference_log_probabilities(judged, s)
                advantages_NT = advantages_of(judged, reference_NT, roles.kl.coefficient, config)
                learnt = learn(s, judged, advantages_NT, reference_NT, roles.kl.coefficient, step)
                metrics = judged.metrics | drawn | learnt | roles.update(judged, reference_NT)
                reinforcement.record(s, log, judged, advantages_NT, reference_NT, step)
                s.finish_step(step, metrics, judged.num_tokens)
            return s.finish()


def collect(s: Session, rewards: RewardSet, step: int) -> tuple[Scored, dict[str, float]]:
    """A step's groups, and how many of those that were drawn have nothing to teach.

    With `max_resamples` groups whose rewards are all equal are replaced, as far as that goes; where every group is
    equal, all stay.
    """
    config: GrpoConfig = s.setup.config
    size, wanted = config.group_size, config.rollout.prompts_per_step
    found = scoring.score(s.rollouts.collect(step), rewards, s.setup)
    unequal, num_drawn = found.groups(_unequal(found, size), size), wanted
    for _ in range(config.max_resamples or 0):
        missing = wanted - len(unequal.collected.prompts)
        if not missing:
            break
        s.at(step, "rollout")
        more = scoring.score(s.rollouts.more(missing, step), rewards, s.setup)
        unequal, num_drawn = unequal + more.groups(_unequal(more, size), size), num_drawn + missing
    num_unequal = len(unequal.collected.prompts)
    metrics = {"groups_drawn": float(num_drawn), "equal_groups": 1 - num_unequal / num_drawn}
    return (unequal if config.max_resamples and num_unequal else found), metrics


def _unequal(scored: Scored, size: int) -> list[int]:
    """Numbers of the groups whose rewards differ."""
    groups = torch.tensor(scored.total_N, dtype=torch.float64).view(-1, size)
    known = groups.nan_to_num(nan=float("inf")).amin(1) < groups.nan_to_num(nan=float("-inf")).amax(1)
    return known.nonzero().flatten().tolist()


def advantages_of(judged: Judged, reference_NT: Tensor | None, kl_coefficient: float, config: GrpoConfig) -> Tensor:
    """[N, T]: each sampled token has the advantage of its answer in its group."""
    experience = judged.experience
    rewards_N = experience.rewards_N.double()
    if reference_NT is not None and config.update.kl and not config.update.kl.in_loss:
        kl_NT = kl.estimate(judged.old_log_probs, reference_NT, kl.Estimator.K1)
        rewards_N = rewards_N - kl_coefficient * kl_NT.where(experience.mask_NT, 0).sum(1)
    advantages_N = advantages.group_advantages(rewards_N, config.group_size, config.scale_by_std)
    return advantages_N.float()[:, None] * experience.learnt_mask


def learn(
    s: Session, judged: Judged, advantages_NT: Tensor, reference_NT: Tensor | None, kl_coefficient: float, step: int
) -> dict[str, float]:
    """Changes the policy: all passes over all minibatches."""
    began = time.perf_counter()
    objective = reinforcement.policy_objective(s, judged, advantages_NT, reference_NT, kl_coefficient, step)
    found = [s.policy.update(batches, objective, step) for batches in reinforcement.minibatches(s, judged, step)]
    return mean_of(found) | {"train_seconds": time.perf_counter() - began}
