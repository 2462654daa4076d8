"""KL estimators on a distribution whose KL is known, and the adaptive controller."""

from __future__ import annotations

import pytest
import torch

from finecut.trainer.rl import kl
from finecut.trainer.rl.kl import Estimator, KlController

LOGITS = torch.tensor([0.3, -1.2, 2.0, 0.1, -0.4], dtype=torch.float64)
REFERENCE = torch.tensor([0.5, -0.2, 1.0, -0.3, 0.2], dtype=torch.float64).log_softmax(0)


@pytest.mark.parametrize("kind", list(Estimator))
def test_estimates_average_to_the_kl_under_the_policy(kind: Estimator) -> None:
    log_probs = LOGITS.log_softmax(0)
    exact = float((log_probs.exp() * (log_probs - REFERENCE)).sum())
    assert exact > 0.05
    assert float((log_probs.exp() * kl.estimate(log_probs, REFERENCE, kind)).sum()) == pytest.approx(exact)


def test_k3_is_never_negative_and_k1_is_their_difference() -> None:
    log_probs, reference = torch.randn(2, 1000, dtype=torch.float64)
    assert (kl.estimate(log_probs, reference, Estimator.K3) >= 0).all()
    torch.testing.assert_close(kl.estimate(log_probs, reference, Estimator.K1), log_probs - reference)
    assert kl.estimate(torch.tensor([-300.0]), torch.tensor([0.0]), Estimator.K3).isfinite().all()


def test_the_gradient_of_k3_is_that_of_equation_4_of_deepseekmath() -> None:
    """d/dlog p of (ref/p - log(ref/p) - 1) is 1 - ref/p; the reference gets none."""
    log_probs = torch.randn(50, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(50, dtype=torch.float64, requires_grad=True)
    kl.estimate(log_probs, reference, Estimator.K3).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(log_probs.grad, 1 - (reference - log_probs).exp().detach())
    assert reference.grad is None


@pytest.mark.parametrize(
    ("measured", "factor"),
    [(6.0, 1.0), (6.6, 1 + 0.1 * 256 / 10_000), (60.0, 1 + 0.2 * 256 / 10_000), (0.0, 1 - 0.2 * 256 / 10_000)],
)
def test_the_weight_follows_the_bounded_relative_error(measured: float, factor: float) -> None:
    controller = KlController(0.1, target=6.0)
    controller.update(measured, 256)
    assert controller.coefficient == pytest.approx(0.1 * factor)


def test_the_controller_brings_a_system_to_its_target() -> None:
    """KL = 1 / weight: the target 4 is reached at weight 0.25."""
    controller = KlController(2.0, target=4.0)
    for _ in range(2000):
        controller.update(1 / controller.coefficient, 256)
    assert controller.coefficient == pytest.approx(0.25, rel=1e-3)


def test_a_fixed_weight_stays_and_a_checkpoint_brings_an_adapted_one_back() -> None:
    fixed = KlController(0.05)
    fixed.update(100.0, 1000)
    assert fixed.coefficient == 0.05
    adaptive = KlController(0.05, target=1.0)
    adaptive.update(100.0, 1000)
    fresh = KlController(0.05, target=1.0)
    fresh.load_state_dict(adaptive.state_dict())
    assert fresh.coefficient == adaptive.coefficient != 0.05
