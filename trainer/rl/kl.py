"""How far a policy is from its reference, and what holds it near."""

from __future__ import annotations

import enum

from torch import Tensor

from finecut.trainer.rl.policy_loss import LARGEST_LOG_RATIO

_LARGEST_ERROR = 0.2  # of the adaptive controller (Ziegler et al., 2019)


class Estimator(enum.Enum):
    """Estimators of KL(policy || reference) from a token that the policy sampled (Schulman, 2020)."""

    # The difference of log-probabilities: unbiased, either sign. For rewards; its gradient says nothing in a loss.
    K1 = "k1"
    # exp(-d) - 1 + d of that difference d: unbiased, never negative, of lower variance. For losses.
    K3 = "k3"


def estimate(log_probs: Tensor, reference_log_probs: Tensor, kind: Estimator) -> Tensor:
    """KL of each token, in nats, in the arguments' shape. Gradients go through `log_probs` alone."""
    difference = log_probs - reference_log_probs.detach()
    if kind is Estimator.K1:
        return difference
    difference = difference.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return (-difference).exp() - 1 + difference


class KlController:
    """The weight of the KL term: fixed, or steered to a target (Ziegler et al., 2019).

    After each step the weight grows by the relative error of the KL, bounded to 20%, times the share of the horizon
    that the step's answers make.
    """

    def __init__(self, coefficient: float, target: float | None = None, horizon: int = 10_000) -> None:
        """`target`: KL in nats a sequence; None: the weight is fixed. `horizon`: in answers."""
        self.coefficient = coefficient
        self._target = target
        self._horizon = horizon

    def update(self, kl_per_sequence: float, num_sequences: int) -> None:
        """Steers, after a step of `num_sequences` answers whose mean KL was `kl_per_sequence`."""
        if self._target is None:
            return
        error = kl_per_sequence / self._target - 1
        error = min(max(error, -_LARGEST_ERROR), _LARGEST_ERROR)
        self.coefficient *= 1 + error * num_sequences / self._horizon

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from a checkpoint."""
        self.coefficient = state["coefficient"]
