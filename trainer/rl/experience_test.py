"""Samples as arrays: where rewards are given, what is stale, what is not learnt from."""

import dataclasses
import math

import pytest
import torch

from finecut.trainer.rl import trust
from finecut.trainer.rl.experience import Experience
from finecut.trainer.rl.testing import make_sample

SAMPLES = [make_sample(3, 3), make_sample(2, 5, inserted=(2, 3)), make_sample(4, 4, inserted=(3,))]


def experience(version: int = 4, rewards: tuple[float, ...] = (1.0, math.nan, 0.0)) -> Experience:
    stale = dataclasses.replace(SAMPLES[0], policy_versions=(2, 3, 4), weights={2: "a", 3: "b", 4: "c"})
    others = [dataclasses.replace(s, policy_versions=(4,) * len(s.answer_ids), weights={4: "c"}) for s in SAMPLES[1:]]
    return Experience.of([stale, *others], rewards, version, torch.device("cpu"))


def test_the_reward_is_given_at_the_last_sampled_token() -> None:
    assert experience().last_token.int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 1, 0, 0]]


def test_an_answer_without_a_score_is_not_learnt_from() -> None:
    found = experience()
    assert found.learnt_mask.sum(1).tolist() == [3, 0, 3] and found.mask_NT.sum(1).tolist() == [3, 3, 3]
    metrics = found.metrics()
    assert metrics["reward"] == 0.5 and metrics["unscored_answers"] == 1 and metrics["answer_tokens"] == 3


def test_staleness_is_counted_by_token() -> None:
    found = experience()
    assert found.staleness_NT[0].tolist() == [2, 1, 0, 0, 0] and not found.staleness_NT[1:].any()
    assert found.metrics()["staleness_max"] == 2


def test_stale_tokens_start_from_the_trainers_probabilities_and_weigh_at_most_the_cap() -> None:
    found = experience()
    ours = torch.where(found.mask_NT, found.behaviour_log_probs_NT + 1.0, 0.0)
    is_stale = found.staleness_NT > 0
    old = trust.old_policy(ours, found.behaviour_log_probs_NT, is_stale, cap=2.0)
    assert old.importance[0].tolist() == pytest.approx([2.0, 2.0, 1.0, 1.0, 1.0])
    assert torch.equal(old.log_probs[0, :2], ours[0, :2])
    assert torch.equal(old.log_probs[0, 2:], found.behaviour_log_probs_NT[0, 2:])
    older = trust.old_policy(ours - 1.5, found.behaviour_log_probs_NT, is_stale, 2.0)
    assert (older.importance[0, :2] < 0.7).all()
