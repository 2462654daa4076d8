"""Writes the trainer's tensors into the memory that a vLLM worker computes with. Runs in vLLM's worker process.

    start_weight_update    the target of updates becomes `InPlace`, which knows where each tensor lies
    update_weights         vLLM receives tensors, and gives them to its target's load_weights: a copy to each place
    finish_weight_update   the target is the model again

vLLM's own way makes every layer anew on a meta device, waits for all its tensors, processes them and copies the result:
a tenth of a second in Python for a model of any size. Where nothing is processed, the places of the tensors are enough.
They are the places that checksums are taken of, so what is not written, or not where it belongs, is found.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import WeightTransferEngine

from finecut.trainer.rollout import engine_weights
from finecut.trainer.rollout.checksums import Part

# Ways of keeping weights that leave them as they are stored.
_PLAIN = frozenset({"UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"})


class InPlace:
    """Stands in for a model as what weights are loaded into."""

    def __init__(self, model: nn.Module) -> None:
        self._places: dict[str, list[Part]] = {}
        for held in engine_weights.held(model):
            self._places.setdefault(held.part.name, []).append(held.part)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copies whole tensors, by Hugging Face's name, to where the worker has its parts of them.

        What no place has is left out: the checksums after the update name it. Raises ValueError for another shape.
        """
        places, values = [], []
        for name, tensor in weights:
            for part in self._places.get(name, ()):
                if tuple(tensor.shape) != part.whole_shape:
                    raise ValueError(f"{name} came as {tuple(tensor.shape)}; the engine's is {part.whole_shape}")
                places.append(part.tensor)
                values.append(tensor[part.slices()])
        if places:
            with torch.inference_mode():  # vLLM makes parameters in it, and nobody else may write to them
                torch._foreach_copy_(places, values)


def is_possible(model: nn.Module) -> bool:
    """Whether the worker keeps every matrix as it came, and derives nothing from it."""
    methods = {type(method).__name__ for method in _each(model, "quant_method")}
    return methods <= _PLAIN and not any(type(module).__name__ == "MLAAttention" for module in model.modules())


def _each(model: nn.Module, attribute: str) -> list[Any]:
    found = (getattr(module, attribute, None) for module in model.modules())
    return [value for value in found if value is not None]


class WritesInPlace(WeightTransferEngine):
    """Mixed in before one of vLLM's engines. A model that vLLM must process takes vLLM's way."""

    @property
    def is_in_place(self) -> bool:
        """Whether the update under way is."""
        return isinstance(self.model, InPlace)

    def start_weight_update(self) -> None:
        """Finds the places, or has vLLM prepare its layers."""
        if is_possible(self.model):
            self.set_weight_update_target(InPlace(self.model), self.model_config)
        else:
            super().start_weight_update()

    def finish_weight_update(self) -> None:
        """Lets vLLM end what it may have begun: with nothing prepared it only gives back what carried the tensors."""
        if self.is_in_place:
            self.reset_weight_update_target()
        super().finish_weight_update()
