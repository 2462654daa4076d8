"""What recipes on preference pairs share: where pairs lie in a micro-batch, and log-probabilities of whole answers.

Documents 2k and 2k + 1 of a block are the prompt with the chosen and with the rejected answer of pair k.

Shapes: B blocks, L tokens a block, T = B * L, D documents a block, P pairs a block (D = 2 P), N pairs of a micro-batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from finecut.trainer.data.batches import IGNORED, MicroBatch
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.lora import lora_layers
from finecut.trainer.ops.cross_entropy import HeadConfig, token_log_probabilities


@dataclasses.dataclass(frozen=True)
class PairValues:
    """A number for the chosen and for the rejected document of each pair; both [N]."""

    chosen_N: Tensor
    rejected_N: Tensor

    def __sub__(self, other: PairValues) -> PairValues:
        return PairValues(self.chosen_N - other.chosen_N, self.rejected_N - other.rejected_N)

    @property
    def difference_N(self) -> Tensor:
        """Chosen less rejected."""
        return self.chosen_N - self.rejected_N

    @classmethod
    def of(cls, batch: MicroBatch, values_BD: Tensor) -> PairValues:
        """From one value a document, of the pairs that there are."""
        is_pair_BP = _pairs(batch, values_BD.device)
        num_pairs = is_pair_BP.shape[1]
        values_BP2 = values_BD[:, : 2 * num_pairs].unflatten(1, (num_pairs, 2))
        return cls(values_BP2[..., 0][is_pair_BP], values_BP2[..., 1][is_pair_BP])


def margins(batch: MicroBatch, device: torch.device) -> Tensor:
    """The margin of each pair, [N] in FP32; 0 where none is declared."""
    margins_BP = torch.from_numpy(batch.margins_BP).to(device)
    return margins_BP.nan_to_num()[_pairs(batch, device)]


def answer_lengths(batch: MicroBatch) -> PairValues:
    """Trained tokens of each answer."""
    is_target_BL = (batch.targets_BL != IGNORED).float()
    return PairValues.of(batch, sum_by_document(batch, is_target_BL))


def answer_log_probabilities(model: Decoder, batch: MicroBatch) -> PairValues:
    """log p(answer | prompt) of each answer, in nats, summed over its trained tokens. Logits exist a chunk at a time."""
    log_probability_BL = model(*inputs_of(batch), read_out=TokenLogProbabilities(batch.targets_BL)).view_as(
        batch.targets_BL
    )
    return PairValues.of(batch, sum_by_document(batch, log_probability_BL))


@dataclasses.dataclass(frozen=True)
class TokenLogProbabilities:
    """Reads a decoder out as the log-probability of each target, [T] in FP32; 0 where there is none."""

    targets_BL: Tensor

    def __call__(self, model: Decoder, hidden_BLD: Tensor) -> Tensor:
        return token_log_probabilities(
            hidden_BLD.flatten(0, 1), model.head_weight(), self.targets_BL.flatten(), head_config(model)
        )


def head_config(model: Decoder) -> HeadConfig:
    """What turns this model's hidden states into log-probabilities."""
    return HeadConfig(
        model.num_outputs, model.loss_chunk_tokens, model.config.logit_soft_cap, slice=model.vocabulary_slice
    )


def inputs_of(batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The first three arguments of a decoder."""
    return batch.input_ids_BL, batch.position_ids_BL, batch.document_ids_BL


def sum_by_document(batch: MicroBatch, values_BL: Tensor) -> Tensor:
    """Sums of each document's values, [B, D] in their type; padding is left out."""
    num_slots = batch.example_ids_BD.shape[1]
    sums_BD = values_BL.new_zeros(values_BL.shape[0], num_slots + 1)
    # Padding, whose document is -1, goes to a slot of its own.
    slot_BL = torch.where(batch.document_ids_BL < 0, num_slots, batch.document_ids_BL).clamp(max=num_slots)
    return sums_BD.scatter_add(1, slot_BL, values_BL)[:, :num_slots]


def last_of_document(batch: MicroBatch, values_BL: Tensor) -> Tensor:
    """The value at each document's last token, [B, D]."""
    following_BL = torch.nn.functional.pad(batch.document_ids_BL[:, 1:], (0, 1), value=-1)
    is_last_BL = (batch.document_ids_BL >= 0) & (batch.document_ids_BL != following_BL)
    return sum_by_document(batch, values_BL.where(is_last_BL, 0))


@contextlib.contextmanager
def without_adapters(model: Decoder) -> Iterator[None]:
    """The model as it is without its adapters."""
    layers = [layer for _, layer in lora_layers(model)]
    for layer in layers:
        layer.is_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.is_enabled = True


def _pairs(batch: MicroBatch, device: torch.device) -> Tensor:
    """Which of the slots hold a pair, [B, P]."""
    num_pairs_B = torch.from_numpy(batch.num_documents_B // 2).to(device)
    return torch.arange(batch.margins_BP.shape[1], device=device) < num_pairs_B[:, None]
