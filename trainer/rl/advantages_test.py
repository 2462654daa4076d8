"""Advantages against sums written out from the papers, in FP64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.trainer.rl import advantages


def gae_of_one(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Equation 16 of Schulman et al. (2016) as it stands: the sum of (gamma * lambda)^l * delta_(t+l)."""
    num = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < num else 0.0) - values[t] for t in range(num)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, num)) for t in range(num)]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
)
def test_gae_is_the_sum_of_discounted_deltas_over_sampled_tokens(seed: int, gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 7, generator=generator) < 0.7
    got, returns = advantages.gae(rewards, values, mask, gamma, lam)
    for n in range(3):
        at = mask[n].nonzero().flatten().tolist()
        expected = gae_of_one(rewards[n, at].tolist(), values[n, at].tolist(), gamma, lam)
        assert got[n, at].tolist() == pytest.approx(expected, abs=1e-12)
        assert returns[n, at].tolist() == pytest.approx((np.array(expected) + values[n, at].numpy()).tolist())
    assert not got[~mask].any() and not returns[~mask].any()


def test_gae_looks_at_nothing_outside_the_mask_and_keeps_the_type() -> None:
    mask = torch.tensor([[True, False, True]])
    rewards, values = torch.tensor([[1.0, math.nan, 2.0]]), torch.tensor([[0.5, math.inf, 1.0]])
    got, returns = advantages.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert got.dtype == returns.dtype == torch.float32
    assert got.tolist() == [[2.5, 0.0, 1.0]]
    assert returns.tolist() == [[3.0, 0.0, 2.0]]


def test_gae_with_lambda_one_is_what_is_left_of_the_reward() -> None:
    """The estimator's high-variance end: the discounted sum of rewards, less the value."""
    rewards, values = torch.randn(2, 5, 6, dtype=torch.float64)
    got, _ = advantages.gae(rewards, values, torch.ones(5, 6, dtype=torch.bool), gamma=1.0, lam=1.0)
    torch.testing.assert_close(got, rewards.flip(1).cumsum(1).flip(1) - values)


@pytest.mark.parametrize("scale_by_std", [True, False])
def test_group_advantages_are_z_scores_or_differences(scale_by_std: bool) -> None:
    rewards = torch.randn(12, dtype=torch.float64)
    got = advantages.group_advantages(rewards, 4, scale_by_std, epsilon=0.0)
    for group in range(3):
        own = rewards[4 * group : 4 * group + 4].numpy()
        expected = (own - own.mean()) / (own.std(ddof=1) if scale_by_std else 1.0)
        assert got[4 * group : 4 * group + 4].tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_a_group_of_equal_rewards_teaches_nothing() -> None:
    equal = torch.full((3,), 0.1 + 0.2, dtype=torch.float32)
    assert advantages.group_advantages(equal, 3, scale_by_std=True).abs().max() < 0.1
    assert not advantages.group_advantages(torch.ones(3), 3, scale_by_std=True).any()


def test_an_answer_without_a_score_counts_in_no_mean() -> None:
    rewards = torch.tensor([1.0, math.nan, 3.0, math.nan, math.nan, math.nan])
    got = advantages.group_advantages(rewards, 3, scale_by_std=False)
    assert got.tolist() == [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    alone = torch.tensor([math.nan, 5.0])
    assert advantages.group_advantages(alone, 2, scale_by_std=True).tolist() == [0.0, 0.0]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(seed=st.integers(0, 10_000), offset=st.sampled_from([0.0, 1e4]))
def test_normalized_advantages_have_mean_0_and_deviation_1_over_sampled_tokens(seed: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 9, generator=generator, dtype=torch.float64) * 3 + offset
    mask = torch.rand(4, 9, generator=generator) < 0.6
    mask[0, :2] = True
    got = advantages.normalize(values.where(mask, math.nan), mask)
    assert got[mask].mean().item() == pytest.approx(0, abs=1e-9)
    assert got[mask].numpy().std() == pytest.approx(1, abs=1e-6)
    assert not got[~mask].any()


def test_normalizing_nothing_or_equal_values_gives_0() -> None:
    assert not advantages.normalize(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)).any()
    assert not advantages.normalize(torch.full((2, 3), 0.1), torch.ones(2, 3, dtype=torch.bool)).any()
