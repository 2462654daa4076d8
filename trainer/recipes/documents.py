"""What recipes work out of packed documents: read-outs of the decoder, and sums over each document.

Shapes: B blocks, L tokens a block, T = B * L, D documents of the fullest block.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.ops.cross_entropy import HeadConfig, TrainedTokens, cross_entropy_sum, token_log_probabilities


@dataclasses.dataclass(frozen=True)
class TokenLogProbabilities:
    """Reads a decoder out as the log-probability of each target, [T] in FP32; 0 where there is none."""

    targets_BL: Tensor

    def __call__(self, model: Decoder, hidden_BLD: Tensor) -> Tensor:
        return token_log_probabilities(
            hidden_BLD.flatten(0, 1), model.head_weight(), self.targets_BL.flatten(), head_config(model)
        )


def cross_entropy_of(
    model: Decoder,
    hidden_BLD: Tensor,
    trained: TrainedTokens,
    gradient_scale: float = 1.0,
    token_losses_BL: Tensor | None = None,
) -> Tensor:
    """The sum over trained tokens, in nats, through the model's own head; for read-outs. See `cross_entropy_sum`."""
    head = head_config(model)
    return cross_entropy_sum(
        hidden_BLD.flatten(0, 1),
        model.head_weight(),
        trained,
        head.chunk_tokens,
        head.vocabulary_size,
        soft_cap=head.soft_cap,
        gradient_scale=gradient_scale,
        vocabulary=head.slice,
        token_losses_T=None if token_losses_BL is None else token_losses_BL.view(-1),
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
    following_BL = functional.pad(batch.document_ids_BL[:, 1:], (0, 1), value=-1)
    is_last_BL = (batch.document_ids_BL >= 0) & (batch.document_ids_BL != following_BL)
    return sum_by_document(batch, values_BL.where(is_last_BL, 0))
