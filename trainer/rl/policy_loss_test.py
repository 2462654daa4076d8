"""The clipped policy loss, token by token, against the papers' formulas in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finecut.trainer.rl import policy_loss
from finecut.trainer.rl.policy_loss import Aggregation


def objective_of_one(ratio: float, advantage: float, low: float, high: float, dual: float | None) -> float:
    """Equation 7 of Schulman et al. (2017), and equation 5 of Ye et al. (2020), which are maximised."""
    clipped = min(max(ratio, 1 - low), 1 + high)
    gain = min(ratio * advantage, clipped * advantage)
    return max(gain, dual * advantage) if dual is not None and advantage < 0 else gain


def slope_of_one(ratio: float, advantage: float, low: float, high: float, dual: float | None) -> float:
    """d objective / d log p = ratio * d objective / d ratio, by cases."""
    if advantage > 0:
        return ratio * advantage if ratio < 1 + high else 0.0
    is_bounded = dual is not None and ratio > dual
    return ratio * advantage if ratio > 1 - low and not is_bounded else 0.0


def tokens(seed: int, num: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old, advantage, weight = torch.randn(3, num, generator=generator, dtype=torch.float64)
    new = old + 0.8 * torch.randn(num, generator=generator, dtype=torch.float64)
    return new.requires_grad_(), old, advantage, weight.abs()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    clip=st.sampled_from([(0.2, 0.2), (0.2, 0.28), (0.1, 0.5)]),
    dual=st.sampled_from([None, 2.0, 3.0]),
)
def test_loss_and_gradient_are_those_of_the_formulas(seed: int, clip: tuple[float, float], dual: float | None) -> None:
    new, old, advantage, weight = tokens(seed)
    got = policy_loss.clipped_sum(new, old, advantage, weight, *clip, dual)
    got.loss_sum.backward()  # type: ignore[no-untyped-call]
    ratios = [math.exp(a - b) for a, b in zip(new.tolist(), old.tolist(), strict=True)]
    cases = list(zip(ratios, advantage.tolist(), weight.tolist(), strict=True))
    assert float(got.loss_sum) == pytest.approx(-sum(w * objective_of_one(r, a, *clip, dual) for r, a, w in cases))
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([-w * slope_of_one(r, a, *clip, dual) for r, a, w in cases], abs=1e-12)
    assert int(got.num_clipped) == sum(slope_of_one(r, a, *clip, dual) == 0 for r, a, _ in cases)
    assert float(got.kl_sum) == pytest.approx(sum(r - 1 - math.log(r) for r in ratios))
    assert float(got.ratio_sum) == pytest.approx(sum(ratios))
    assert float(got.ratio_max) == pytest.approx(max(ratios))


def test_the_first_pass_has_the_gradient_of_reinforce() -> None:
    """At ratio 1 nothing is clipped: the gradient is -advantage * weight."""
    _, old, advantage, weight = tokens(0)
    new = old.clone().requires_grad_()
    got = policy_loss.clipped_sum(new, old, advantage, weight, 0.2, 0.2, dual_clip=3.0)
    got.loss_sum.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(new.grad, -advantage * weight)
    assert int(got.num_clipped) == 0 and float(got.kl_sum) == pytest.approx(0, abs=1e-12)


def test_tokens_of_weight_0_count_nowhere_whatever_they_hold() -> None:
    new, old, advantage, weight = (value.detach().clone() for value in tokens(1))
    expected = policy_loss.clipped_sum(new[5:], old[5:], advantage[5:], weight[5:], 0.2, 0.2)
    new[:5], old[:5], advantage[:5], weight[:5] = math.nan, -math.inf, math.nan, 0.0
    new.requires_grad_()
    got = policy_loss.clipped_sum(new, old, advantage, weight, 0.2, 0.2)
    got.loss_sum.backward()  # type: ignore[no-untyped-call]
    for name in ("loss_sum", "num_clipped", "kl_sum", "ratio_sum", "ratio_max"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name))
    assert new.grad is not None and not new.grad[:5].any() and new.grad[5:].any()


def test_no_token_at_all_gives_zeros() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    got = policy_loss.clipped_sum(nothing, nothing, nothing, nothing, 0.2, 0.2)
    got.loss_sum.backward()  # type: ignore[no-untyped-call]
    assert float(got.loss_sum) == float(got.ratio_max) == int(got.num_clipped) == 0


def test_a_policy_far_away_keeps_a_finite_loss() -> None:
    new = torch.tensor([0.0, 0.0], requires_grad=True)
    got = policy_loss.clipped_sum(new, torch.tensor([-1e4, 1e4]), torch.tensor([-1.0, 1.0]), torch.ones(2), 0.2, 0.2)
    got.loss_sum.backward()  # type: ignore[no-untyped-call]
    assert new.grad is not None
    assert got.loss_sum.isfinite() and new.grad.isfinite().all()


LENGTHS = [1, 4, 0, 3]
MASK = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
LOSSES = torch.arange(20, dtype=torch.float64).view(4, 5).sin()


def mean_of(aggregation: Aggregation) -> float:
    weights = policy_loss.token_weights(MASK, aggregation, max_new_tokens=5, dtype=torch.float64)
    return float((weights * LOSSES).sum()) / (sum(LENGTHS) if aggregation is Aggregation.TOKEN_MEAN else len(LENGTHS))


def test_grpo_takes_the_mean_of_each_answers_mean() -> None:
    by_answer = [float(LOSSES[n, :length].sum()) / max(1, length) for n, length in enumerate(LENGTHS)]
    assert mean_of(Aggregation.SEQUENCE_MEAN) == pytest.approx(sum(by_answer) / 4)


def test_dapo_takes_the_mean_over_all_tokens() -> None:
    assert mean_of(Aggregation.TOKEN_MEAN) == pytest.approx(float(LOSSES[MASK].mean()))


def test_dr_grpo_divides_every_answer_by_the_same_length() -> None:
    by_answer = [float(LOSSES[n, :length].sum()) / 5 for n, length in enumerate(LENGTHS)]
    assert mean_of(Aggregation.CONSTANT_LENGTH) == pytest.approx(sum(by_answer) / 4)


def test_importance_weights_are_bounded_ratios_without_a_gradient() -> None:
    new = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64, requires_grad=True)
    got = policy_loss.importance_weights(new, torch.tensor([-1.0, -0.5, -9.0], dtype=torch.float64), cap=2.0)
    assert got.tolist() == pytest.approx([1.0, math.exp(-0.5), 2.0])
    assert not got.requires_grad
