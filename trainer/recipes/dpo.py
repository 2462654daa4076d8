"""Direct preference optimisation (Rafailov et al., 2023), and IPO (Azar et al., 2023).

    packed pairs -> policy    -> log p(chosen), log p(rejected) --\\
                 -> reference -> the same, without gradients -----+-> h = difference of the log ratios
                                  SIGMOID: -(1 - s) log sigmoid(b h) - s log sigmoid(-b h)      s: label_smoothing
                                  IPO:      (h - 1 / (2 b))^2                                   b: beta
                 -> summed over pairs -> / pairs of the step

Differs from common practice: pairs are packed, both answers of a pair in one forward pass; the sum is divided by the
pairs of all ranks and micro-batches; no logits are kept. The reference is the policy before training: with fresh
adapters the model with the adapters switched off, which needs no second copy, else a frozen copy. On request its values
are worked out beforehand (see reference_values).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from finecut.proto import artifact_pb2
from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import ModelSource, locate_model
from finecut.trainer.parallel import gathering
from finecut.trainer.recipes import frozen, pairs, reference_values
from finecut.trainer.recipes.config import DpoConfig, DpoVariant
from finecut.trainer.recipes.objective import Losses, NothingKept, Objective, means
from finecut.trainer.recipes.pairs import PairValues, answer_log_probabilities
from finecut.trainer.recipes.reference_values import Reference
from finecut.trainer.recipes.supervised import Setup


@dataclasses.dataclass(frozen=True)
class Dpo:
    """The recipe."""

    config: DpoConfig
    data_kind = artifact_pb2.DataArtifact.PAIRS

    def output_head(self, source: ModelSource) -> OutputHead | None:
        """The language-model head stays."""
        return None

    def copies_of_policy(self, source: ModelSource) -> int:
        """Frozen copies that are kept where no reference is named; fresh adapters need none."""
        has_copy = self.config.lora is None or source.adapter is not None
        return int(has_copy and not self.config.names_reference)

    def objective(self, model: Decoder, setup: Setup) -> Objective:
        """The loss against the reference, which it loads."""
        return DpoLoss(self.config, self._reference(model, setup))

    def _reference(self, model: Decoder, setup: Setup) -> Reference:
        if not self.config.precompute_reference:
            return self._live_reference(model, setup)
        named: Path | None = setup.place.roles.get("reference")
        source = locate_model(named) if named is not None else setup.source
        return reference_values.stored(lambda: self._live_reference(model, setup), source, setup)

    def _live_reference(self, model: Decoder, setup: Setup) -> Reference:
        training = self.config.training
        named: Path | None = setup.place.roles.get("reference")
        if named is not None:
            return FrozenReference(frozen.load_role(named, "reference_model", training, setup))
        if model.lora and setup.source.adapter is None:
            return AdaptersOff(model)
        # Adapters that are continued are not zero: without them the model would be an older one than the policy.
        reference = frozen.load_frozen(setup.source, setup.decoder_config, training, setup.precision, setup.devices)
        return FrozenReference(reference)


@dataclasses.dataclass(frozen=True)
class FrozenReference:
    """A model of its own."""

    model: Decoder

    @torch.no_grad()
    def __call__(self, batch: MicroBatch) -> PairValues:
        values = answer_log_probabilities(self.model, batch)
        gathering.reshard(self.model)
        return values


@dataclasses.dataclass(frozen=True)
class AdaptersOff:
    """The policy without its adapters."""

    model: Decoder

    @torch.no_grad()
    def __call__(self, batch: MicroBatch) -> PairValues:
        with pairs.without_adapters(self.model):
            return answer_log_probabilities(self.model, batch)


@dataclasses.dataclass(frozen=True)
class DpoLoss(NothingKept):
    """The objective. Its unit is the pair."""

    config: DpoConfig
    reference: Reference

    def num_units(self, batch: MicroBatch) -> int:
        """Pairs."""
        return batch.num_pairs

    def losses(self, model: Decoder, batch: MicroBatch, gradient_scale: float) -> Losses:
        """Loss and what it says of the pairs: implicit rewards in nats, and how far the policy has moved."""
        reference = self.reference(batch)
        policy = answer_log_probabilities(model, batch)
        ratio, lengths = policy - reference, pairs.answer_lengths(batch)
        tokens = (lengths.chosen_N + lengths.rejected_N).clamp(min=1)
        moved = (ratio.chosen_N + ratio.rejected_N) / tokens
        if self.config.length_normalized:
            ratio = PairValues(
                ratio.chosen_N / lengths.chosen_N.clamp(min=1), ratio.rejected_N / lengths.rejected_N.clamp(min=1)
            )
        difference_N = ratio.difference
        sums = {
            "reward_accuracy": ((difference_N > 0).double() + 0.5 * (difference_N == 0).double()).sum(),
            "reward_margin": self.config.beta * difference_N.sum(),
            "chosen_reward": self.config.beta * ratio.chosen_N.sum(),
            "rejected_reward": self.config.beta * ratio.rejected_N.sum(),
            "log_ratio_per_token": moved.sum(),
            "chosen_log_probability": policy.chosen_N.sum(),
            "rejected_log_probability": policy.rejected_N.sum(),
        }
        return Losses(loss_of(difference_N, self.config).sum(), {name: value.detach() for name, value in sums.items()})

    def metrics(self, sums: Mapping[str, Tensor], num_units: int) -> dict[str, float]:
        """Means over pairs."""
        return means(sums, num_units)


def loss_of(difference_N: Tensor, config: DpoConfig) -> Tensor:
    """The loss of each pair, from the difference of its answers' log ratios."""
    if config.variant is DpoVariant.IPO:
        return (difference_N - 1 / (2 * config.beta)).square()
    logits_N, smoothing = config.beta * difference_N, config.label_smoothing
    return -(1 - smoothing) * functional.logsigmoid(logits_N) - smoothing * functional.logsigmoid(-logits_N)
