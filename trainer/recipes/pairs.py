"""What recipes on preference pairs share: where pairs lie in a micro-batch, and log-probabilities of whole answers.

Documents 2k and 2k + 1 of a block are the prompt with the chosen and with the rejected answer of pair k.

Shapes: B blocks, D documents of the fullest one, P pairs of that (D = 2 P), L tokens a block, N pairs of a micro-batch.
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
from finecut.trainer.recipes.documents import TokenLogProbabilities, inputs_of, sum_by_document


@dataclasses.dataclass(frozen=True)
class PairValues:
    """A number for the chosen and for the rejected document of each pair; both [N]."""

    chosen_N: Tensor
    rejected_N: Tensor

    def __sub__(self, other: PairValues) -> PairValues:
        return PairValues(self.chosen_N - other.chosen_N, self.rejected_N - other.rejected_N)

    @property
    def difference(self) -> Tensor:
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
    """log p(answer | prompt) of each answer, in nats, summed over its trained tokens; logits exist by chunk."""
    log_probability_T = model(*inputs_of(batch), read_out=TokenLogProbabilities(batch.targets_BL))
    return PairValues.of(batch, sum_by_document(batch, log_probability_T.view_as(batch.targets_BL)))


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
