"""Logits of our decoder on packed documents, and whether two sets of logits are the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import ModelSource, materialize
from finecut.trainer.models.lora import LoraConfig, apply_lora

# Largest difference of two FP32 logits relative to the largest logit. Rounding leaves 2e-6 on the 30 layers of
# SmolLM2-135M; a wrong rotary scaling, norm or head shows at 1e-2 and more.
TOLERANCE = 1e-3
_PADDING = 5  # tokens after the documents, so that padding is part of what is checked


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far two sets of logits are apart."""

    # Largest absolute difference of a logit, and largest absolute logit of the reference.
    max_difference: float
    max_logit: float
    # Mean over tokens of KL(reference || ours), in nats.
    divergence: float

    @property
    def is_equal(self) -> bool:
        """Whether rounding explains the difference; false when anything is not finite."""
        return self.max_difference <= TOLERANCE * max(1.0, self.max_logit)

    def __str__(self) -> str:
        return f"max abs difference {self.max_difference:.3g} (largest logit {self.max_logit:.3g})"


def load_decoder(
    source: Path | ModelSource, device: torch.device | str = "cpu", lora: LoraConfig | None = None
) -> Decoder:
    """A decoder in one process, in FP32, in evaluation mode; a source's adapter is merged unless `lora` is given."""
    with torch.device("meta"):
        model = Decoder(DecoderConfig.from_folder(source.base if isinstance(source, ModelSource) else source))
    if lora:
        apply_lora(model, lora)
    materialize(model, source, device, seed=0)
    return model.eval()


def pack(documents: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, positions and document ids of all documents in one row with padding: [1, L] each."""
    lengths = [len(document) for document in documents]
    input_ids = functional.pad(torch.cat(list(documents)), (0, _PADDING))
    positions = functional.pad(torch.cat([torch.arange(n) for n in lengths]), (0, _PADDING))
    document_ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    document_ids = functional.pad(document_ids, (0, _PADDING), value=-1)
    return input_ids[None].to(device), positions[None].to(device), document_ids[None].to(device)


@torch.no_grad()
def packed_logits(model: Decoder, documents: Sequence[Tensor]) -> list[Tensor]:
    """Logits of each document, all packed into one row with padding. [length, vocabulary], FP32, on the CPU."""
    hidden_1LD = model(*pack(documents, model.embedding.weight.device))
    return list(model.logits(hidden_1LD)[0, :-_PADDING].cpu().split([len(document) for document in documents]))


def compare(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> Agreement:
    """Both as lists of [length, vocabulary], one a document."""
    a, b = torch.cat(list(ours)), torch.cat(list(reference))
    assert a.shape == b.shape, (a.shape, b.shape)
    if not (a.isfinite().all() and b.isfinite().all()):
        return Agreement(float("inf"), float("nan"), float("inf"))
    divergence = functional.kl_div(a.log_softmax(-1), b.log_softmax(-1), log_target=True, reduction="batchmean")
    return Agreement((a - b).abs().max().item(), b.abs().max().item(), divergence.item())
