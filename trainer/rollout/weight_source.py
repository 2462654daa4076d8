"""The trainer's weights as engines want them: whole tensors under Hugging Face's names, in the engine's number type."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from finecut.trainer.models.adapter import peft_names, save_adapter
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.families.stored import Stack, Stored
from finecut.trainer.models.lora import LORA_SUFFIXES, lora_layers, merged_weight
from finecut.trainer.models.sharding import gather, named_parameters
from finecut.trainer.rollout.checksums import Checksums, Part


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """What a tensor is before it is gathered."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class DecoderSource:
    """Streams a decoder, sharded or not, tensor by tensor. Iterating is collective: every rank does it.

    It has the shape of vLLM's `WeightSource`, without importing vLLM.
    """

    def __init__(self, model: Decoder, number_type: torch.dtype, merge_adapters: bool = True) -> None:
        """`merge_adapters`: send the weights with the adapters merged in, else the frozen base alone."""
        self._model = model
        self._number_type = number_type
        self._merge = merge_adapters

    @property
    def model(self) -> Decoder:
        """The decoder."""
        return self._model

    def metadata(self) -> list[TensorSpec]:
        """Name, type and shape of each tensor, in the order of iteration; nothing is gathered."""
        return [
            TensorSpec(tensor_name, self._number_type, shape)
            for name, parameter in self._parameters()
            for tensor_name, shape in self._stored(name, parameter).shapes().items()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        adapters = dict(lora_layers(self._model)) if self._merge else {}
        for name, parameter in self._parameters():
            value = gather(parameter)
            if adapter := adapters.get(name.removesuffix(".weight")):
                value = merged_weight(value, gather(adapter.lora_a), gather(adapter.lora_b), adapter.scale)
            value = value[: self._model.exported_shape(name, parameter)[0]].to(self._number_type).contiguous()
            way = self._stored(name, parameter)
            yield from zip(way.shapes(), value.unbind() if isinstance(way, Stack) else (value,), strict=True)

    def checksums(self) -> dict[str, int]:
        """The checksum of each tensor as it would be sent now. Collective."""
        found = Checksums()
        for name, tensor in self:
            found.add(Part.whole(name, tensor))
        return found.settle()

    def _stored(self, name: str, parameter: Tensor) -> Stored:
        return self._model.config.tensor_family.stored(name, self._model.exported_shape(name, parameter))[0]

    def _parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(n, p) for n, p in named_parameters(self._model) if not n.endswith(LORA_SUFFIXES)]


def adapter_checksums(model: Decoder) -> dict[str, int]:
    """The checksum of each tensor of the model's adapters, in FP32 under PEFT's names. Collective."""
    found = Checksums()
    for layer, linear in lora_layers(model):
        for name, parameter in zip(peft_names(model, layer), (linear.lora_a, linear.lora_b), strict=True):
            found.add(Part.whole(name, gather(parameter).float()))
    return found.settle()


def adapter_files(model: Decoder) -> dict[str, bytes]:
    """The adapters as the files of PEFT's format, by name; empty on ranks other than the first. Collective."""
    with tempfile.TemporaryDirectory(prefix="finecut_adapter_") as folder:
        save_adapter(model, Path(folder), base_model="policy")
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
