"""Gradients of our decoder on packed documents against those of `transformers` on each document alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.logits import TOLERANCE, pack
from finecut.trainer.models.sharding import named_parameters


@dataclasses.dataclass(frozen=True)
class GradientAgreement:
    """How far gradients are apart: the largest difference, of whichever parameter, and the largest gradient there."""

    parameter: str
    difference: float
    largest: float

    @property
    def is_equal(self) -> bool:
        """Whether rounding explains the difference."""
        return self.difference <= TOLERANCE * self.largest


def compare_gradients(model: Decoder, reference: Any, documents: Sequence[Tensor]) -> GradientAgreement:
    """Compares every gradient of the next-token loss summed over `documents`; the parameter that is furthest off."""
    ours = _our_gradients(model, documents)
    theirs = _Gradients(_reference_gradients(reference, documents))
    # transformers gives the embedding of the padding token no gradient.
    padding = reference.get_input_embeddings().padding_idx
    worst = None
    for name, gradient in ours.items():
        ways = model.config.tensor_family.stored(name, tuple(gradient.shape))
        way = next(way for way in ways if way.shapes().keys() <= theirs.names)
        wanted = way.read(theirs, (0,) * gradient.ndim, tuple(gradient.shape))
        if name == "embedding.weight" and padding is not None:
            gradient[padding] = wanted[padding] = 0
        found = GradientAgreement(name, (gradient - wanted).abs().max().item(), wanted.abs().max().item())
        if worst is None or _ratio(found) > _ratio(worst):
            worst = found
    assert worst is not None
    return worst


def _ratio(agreement: GradientAgreement) -> float:
    return agreement.difference / max(agreement.largest, 1e-30)


def _our_gradients(model: Decoder, documents: Sequence[Tensor]) -> dict[str, Tensor]:
    input_ids, positions, document_ids = pack(documents, model.embedding.weight.device)
    targets = torch.full_like(input_ids, -100)
    is_same = (document_ids[:, 1:] == document_ids[:, :-1]) & (document_ids[:, 1:] >= 0)
    targets[:, :-1] = torch.where(is_same, input_ids[:, 1:], -100)
    model(input_ids, positions, document_ids, targets).backward()
    found = {
        # One that is missing is zero, and stands out.
        name: (torch.zeros_like(p) if p.grad is None else p.grad)[: model.exported_shape(name, p)[0]].cpu()
        for name, p in named_parameters(model)
    }
    model.zero_grad()
    return found


def _reference_gradients(reference: Any, documents: Sequence[Tensor]) -> dict[str, Tensor]:
    for document in documents:
        if len(document) > 1:
            ids = document[None].to(reference.device)
            functional.cross_entropy(reference(ids).logits[0, :-1].float(), ids[0, 1:], reduction="sum").backward()
    return {name: p.grad.cpu() for name, p in reference.named_parameters() if p.grad is not None}


class _Gradients:
    """Named tensors, read as those of a model folder are."""

    def __init__(self, gradients: Mapping[str, Tensor]) -> None:
        self._gradients = gradients

    @property
    def names(self) -> set[str]:
        return set(self._gradients)

    def read(self, name: str, offset: Sequence[int], size: Sequence[int]) -> Tensor:
        return self._gradients[name][tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))]
