"""The critic's loss against its formula in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.trainer.rl.value_loss import clipped_value_sum


def of_one(value: float, old: float, target: float, clip: float) -> tuple[float, float]:
    """Half the larger of both squared errors, and its slope."""
    near = min(max(value, old - clip), old + clip)
    plain, clipped = (value - target) ** 2, (near - target) ** 2
    slope_clipped = near - target if abs(value - old) < clip else 0.0
    return max(plain, clipped) / 2, value - target if plain >= clipped else slope_clipped


@settings(deadline=None, derandomize=True, max_examples=60)
@given(seed=st.integers(0, 10_000), clip=st.sampled_from([0.05, 0.2, 1.0]))
def test_loss_and_gradient_are_those_of_the_formula(seed: int, clip: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    value, old, target, weight = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    value.requires_grad_()
    loss = clipped_value_sum(value, old, target, weight.abs(), clip)
    loss.backward()  # type: ignore[no-untyped-call]
    cases = [of_one(v, o, t, clip) for v, o, t in zip(value.tolist(), old.tolist(), target.tolist(), strict=True)]
    weights = weight.abs().tolist()
    assert float(loss) == pytest.approx(sum(w * found for w, (found, _) in zip(weights, cases, strict=True)))
    assert value.grad is not None
    assert value.grad.tolist() == pytest.approx([w * s for w, (_, s) in zip(weights, cases, strict=True)], abs=1e-12)


def test_an_infinite_range_is_half_the_squared_error() -> None:
    value, old, target = torch.randn(3, 8, dtype=torch.float64)
    loss = clipped_value_sum(value, old, target, torch.ones(8), clip=math.inf)
    torch.testing.assert_close(loss, (value - target).square().sum() / 2)


def test_tokens_of_weight_0_are_left_out_whatever_they_hold() -> None:
    value = torch.tensor([math.nan, 1.0], requires_grad=True)
    loss = clipped_value_sum(
        value, torch.tensor([math.inf, 1.0]), torch.tensor([math.nan, 3.0]), torch.tensor([0.0, 1.0]), 0.2
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss) == 2.0
    assert value.grad is not None and value.grad.tolist() == [0.0, -2.0]
