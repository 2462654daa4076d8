"""A reward model (Bradley and Terry, 1952; Ouyang et al., 2022): one number an answer.

    packed pairs -> decoder -> scalar head at each document's last token: r(chosen), r(rejected)
                 -> -log sigmoid(r(chosen) - r(rejected) - margin) + centering * (r(chosen) + r(rejected))^2
                 -> summed over pairs -> / pairs of the step

Differs from common practice: pairs are packed, and the margin is that of the record where it declares one. The
centering term is that of Eisenstein et al. (2023). The artifact is a model for sequence classification with one label.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from finecut.proto import artifact_pb2
from finecut.proto.config import UserError
from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.heads import head_of
from finecut.trainer.models.huggingface import ModelSource
from finecut.trainer.recipes import documents, pairs
from finecut.trainer.recipes.config import RewardModelConfig
from finecut.trainer.recipes.objective import Losses, NothingKept, Objective, means
from finecut.trainer.recipes.pairs import PairValues
from finecut.trainer.recipes.supervised import Setup

_NUM_BINS = 10  # of the expected calibration error, from confidence 0.5 to 1


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """The recipe."""

    config: RewardModelConfig
    data_kind = artifact_pb2.DataArtifact.PAIRS

    def output_head(self, source: ModelSource) -> OutputHead | None:
        """One number a token. Raises UserError where the source has a head of another size."""
        found = head_of(source)
        if found is not None and not found.is_scalar:
            raise UserError(
                f"{source.base}: its head has {found.num_outputs} outputs and a reward model has one; start from a"
                " language model or from a reward model"
            )
        return OutputHead(1, self.config.initial_std)

    def objective(self, model: Decoder, setup: Setup) -> Objective:
        """The loss; nothing stands beside the model."""
        return BradleyTerry(self.config.centering)


@dataclasses.dataclass(frozen=True)
class BradleyTerry(NothingKept):
    """The objective. Its unit is the pair."""

    centering: float

    def num_units(self, batch: MicroBatch) -> int:
        """Pairs."""
        return batch.num_pairs

    def losses(self, model: Decoder, batch: MicroBatch, gradient_scale: float) -> Losses:
        """Loss, accuracy, rewards, and what calibration is worked out from."""
        reward_BL = model(*documents.inputs_of(batch))
        rewards = PairValues.of(batch, documents.last_of_document(batch, reward_BL))
        loss_N = loss_of(rewards, pairs.margins(batch, reward_BL.device), self.centering)
        # Keeps every output in the graph, so that a batch of padding has zero gradients rather than none.
        loss = loss_N.sum() + 0 * reward_BL.sum()
        return Losses(loss, _sums(PairValues(rewards.chosen_N.detach(), rewards.rejected_N.detach())))

    def metrics(self, sums: Mapping[str, Tensor], num_units: int) -> dict[str, float]:
        """Means over pairs, and the expected calibration error."""
        gaps = (sums["confidence_by_bin"] - sums["correct_by_bin"]).abs().sum()
        return means(sums, num_units) | {"calibration_error": float(gaps) / max(1, num_units)}


def loss_of(rewards: PairValues, margin_N: Tensor, centering: float) -> Tensor:
    """The loss of each pair."""
    loss_N = -functional.logsigmoid(rewards.difference - margin_N)
    return loss_N + centering * (rewards.chosen_N + rewards.rejected_N).square()


def _sums(rewards: PairValues) -> dict[str, Tensor]:
    """Sums over pairs. Confidence is the probability of the answer that the model prefers (Guo et al., 2017)."""
    difference_N = rewards.difference.double()
    correct_N = (difference_N > 0).double() + 0.5 * (difference_N == 0).double()
    confidence_N = torch.sigmoid(difference_N.abs())
    bin_N = ((confidence_N - 0.5) * 2 * _NUM_BINS).long().clamp(max=_NUM_BINS - 1)
    empty = confidence_N.new_zeros(_NUM_BINS)
    return {
        "accuracy": correct_N.sum(),
        "reward_margin": difference_N.sum(),
        "chosen_reward": rewards.chosen_N.sum(),
        "rejected_reward": rewards.rejected_N.sum(),
        "confidence_by_bin": empty.scatter_add(0, bin_N, confidence_N),
        "correct_by_bin": empty.scatter_add(0, bin_N, correct_N),
    }
