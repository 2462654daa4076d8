"""What a policy minimises over a minibatch of answers, and what a critic does; see policy_loss.py and value_loss.py.

Shapes: N answers, T tokens of the longest; of a micro-batch T is B * L, all its places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.recipes.documents import inputs_of
from finecut.trainer.recipes.objective import Losses, NothingKept
from finecut.trainer.rl import kl, policy_loss, trust
from finecut.trainer.rl.config import UpdateConfig
from finecut.trainer.rl.policy_loss import Aggregation
from finecut.trainer.rl.rows import AnswerBatch
from finecut.trainer.rl.token_scores import LogProbabilitiesAndEntropies, SampledLogProbabilities
from finecut.trainer.rl.trust import OldPolicy
from finecut.trainer.rl.value_loss import clipped_value_sum
from finecut.trainer.rollout.sampling import SamplingParameters


@dataclasses.dataclass(frozen=True)
class PolicyTargets:
    """What a batch of rollouts says about each token, [N, T], on the device. Tokens of weight 0 are not learnt from."""

    # Under the policy that sampled.
    behaviour_log_probs_NT: Tensor
    # Policy versions that the token is behind the trainer's.
    staleness_NT: Tensor
    advantages_NT: Tensor
    weights_NT: Tensor
    # What the trainer said of stale tokens before it began to learn. None: the training pass says it, as the only one.
    trainer_log_probs_NT: Tensor | None
    # None: no KL term in the loss.
    reference_log_probs_NT: Tensor | None = None


class FirstPass(Protocol):
    """Who wants to know what the policy says of the batch, where no pass before training asks it."""

    def put(self, batch: AnswerBatch, found_2T: Tensor) -> None:
        """Log-probabilities and entropies of a micro-batch."""

    def done(self) -> None:
        """All have been put in, and the optimizer has not stepped yet. Collective. Raises DriftError."""


@dataclasses.dataclass(frozen=True)
class PolicyObjective(NothingKept):
    """The clipped loss, and the KL term where it stands in the loss. `kl_coefficient` is that of this step."""

    config: UpdateConfig
    sampling: SamplingParameters
    targets: PolicyTargets
    kl_coefficient: float = 0.0
    first_pass: FirstPass | None = None

    def num_units(self, batch: MicroBatch) -> int:
        """Sampled tokens, or answers; see Aggregation."""
        assert isinstance(batch, AnswerBatch)
        return batch.tokens.trained if self.config.aggregation is Aggregation.TOKEN_MEAN else batch.num_answers

    def losses(self, model: Decoder, batch: MicroBatch, gradient_scale: float) -> Losses:
        """The loss and its parts, summed over tokens."""
        assert isinstance(batch, AnswerBatch)
        log_probs_T = self._log_probabilities(model, batch)
        weights_T = batch.fetch(self.targets.weights_NT)
        old = self._old_policy(batch, log_probs_T.detach())
        found = policy_loss.clipped_sum(
            log_probs_T,
            old.log_probs,
            batch.fetch(self.targets.advantages_NT) * old.importance,
            weights_T,
            self.config.clip_low,
            self.config.clip_high,
            self.config.dual_clip,
        )
        loss = found.loss_sum
        sums = {
            "tokens": (weights_T != 0).sum(),
            "clipped": found.num_clipped,
            "step_kl": found.kl_sum,
            "ratio": found.ratio_sum,
        }
        if self.targets.reference_log_probs_NT is not None:
            reference_T = batch.fetch(self.targets.reference_log_probs_NT)
            kl_T = kl.estimate(log_probs_T, reference_T, kl.Estimator.K3)
            kl_loss = (weights_T * kl_T.where(weights_T != 0, 0)).sum()
            loss = loss + self.kl_coefficient * kl_loss
            sums["kl_loss"] = kl_loss.detach()
        # Keeps every output in the graph: a batch of padding has zero gradients rather than none.
        return Losses(loss + 0 * log_probs_T.sum(), sums)

    def step_done(self, step: int) -> None:
        """Before the optimizer."""
        if self.first_pass:
            self.first_pass.done()

    def _log_probabilities(self, model: Decoder, batch: AnswerBatch) -> Tensor:
        """[B * L]"""
        if self.first_pass is None:
            return model(*inputs_of(batch), read_out=SampledLogProbabilities(batch.targets_BL, self.sampling))
        found_2T = model(*inputs_of(batch), read_out=LogProbabilitiesAndEntropies(batch.targets_BL, self.sampling))
        self.first_pass.put(batch, found_2T)
        return found_2T[0]

    def _old_policy(self, batch: AnswerBatch, log_probs_T: Tensor) -> OldPolicy:
        targets = self.targets
        known_NT = targets.trainer_log_probs_NT
        return trust.old_policy(
            log_probs_T if known_NT is None else batch.fetch(known_NT),
            batch.fetch(targets.behaviour_log_probs_NT),
            batch.fetch(targets.staleness_NT) > 0,
            self.config.importance_cap,
        )

    def metrics(self, sums: Mapping[str, Tensor], num_units: int) -> dict[str, float]:
        """Means over tokens; of the KL loss, over units as the loss itself."""
        tokens = max(1.0, float(sums["tokens"]))
        found = {
            "clip_share": float(sums["clipped"]) / tokens,
            "step_kl": float(sums["step_kl"]) / tokens,
            "ratio": float(sums["ratio"]) / tokens,
        }
        if "kl_loss" in sums:
            found["kl_loss"] = float(sums["kl_loss"]) / max(1, num_units)
        return found


@dataclasses.dataclass(frozen=True)
class ValueTargets:
    """What the critic learns of each token, [N, T]; tokens outside the mask are left out."""

    old_values_NT: Tensor
    returns_NT: Tensor
    mask_NT: Tensor


@dataclasses.dataclass(frozen=True)
class ValueObjective(NothingKept):
    """Half the squared error of the critic, clipped. Its unit is the sampled token."""

    targets: ValueTargets
    clip: float

    def num_units(self, batch: MicroBatch) -> int:
        """Sampled tokens."""
        return batch.tokens.trained

    def losses(self, model: Decoder, batch: MicroBatch, gradient_scale: float) -> Losses:
        """The loss, and what explained variance is worked out from."""
        assert isinstance(batch, AnswerBatch)
        values_T = model(*inputs_of(batch)).flatten()
        returns_T, weights_T = batch.fetch(self.targets.returns_NT), batch.fetch(self.targets.mask_NT.float())
        loss = clipped_value_sum(values_T, batch.fetch(self.targets.old_values_NT), returns_T, weights_T, self.clip)
        error_T = ((returns_T - values_T.detach()) * weights_T).double()
        sums = {
            "error": error_T.sum(),
            "squared_error": error_T.square().sum(),
            "return": (returns_T * weights_T).double().sum(),
            "squared_return": (returns_T.square() * weights_T).double().sum(),
        }
        return Losses(loss + 0 * values_T.sum(), sums)

    def metrics(self, sums: Mapping[str, Tensor], num_units: int) -> dict[str, float]:
        """Mean return, and the share of its variance that the critic explains."""
        mean = {name: float(value) / max(1, num_units) for name, value in sums.items()}
        variance = mean["squared_return"] - mean["return"] ** 2
        left = mean["squared_error"] - mean["error"] ** 2
        explained = 1 - left / variance if variance > torch.finfo(torch.float32).eps else 0.0
        return {"return": mean["return"], "explained_variance": explained}
