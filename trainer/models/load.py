"""Reads a model's weights into a decoder, each rank only its own part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from finecut.proto.config import UserError
from finecut.trainer.models.adapter import AdapterWeights
from finecut.trainer.models.decoder import SCORE_PARAMETER, VOCABULARY_PARAMETERS, Decoder
from finecut.trainer.models.families.stored import Stored
from finecut.trainer.models.lora import LORA_SUFFIXES, LoraConfig, initialize_a, merged_weight
from finecut.trainer.models.new_rows import generator_for, set_new_rows
from finecut.trainer.models.safetensors_read import TensorFolder
from finecut.trainer.models.sharding import Box, local_box, local_part, named_parameters
from finecut.trainer.models.source import ModelSource
from finecut.trainer.models.tensor_check import find_tensors


def materialize(model: Decoder, source: Path | ModelSource, device: torch.device | str, seed: int) -> None:
    """Gives a decoder on the meta device its memory on `device`, and its weights.

    Works before and after `fully_shard`: each rank reads only its slices. Adapters of the model start from the source's
    adapter where it has one of the same kind, else A is random (the same on every rank, whatever the world size) and
    B is zero. A source's adapter is merged into the weights of a model without adapters. New rows of the vocabulary
    start near the mean of the others (see new_rows), and an output head that the source lacks is random.

    Raises UserError, naming the tensors, when the files lack some, hold others, or have other shapes.
    """
    source = source if isinstance(source, ModelSource) else ModelSource(Path(source))
    tensors = TensorFolder(source.base)
    weights = _Weights(tensors, find_tensors(model, tensors), seed)
    adapter = AdapterWeights(source.adapter, model) if source.adapter else None
    if adapter and model.lora and _kind(adapter.config) != _kind(model.lora):
        raise UserError(
            f"{source.adapter}: its adapter is {_describe(adapter.config)}, but lora asks for {_describe(model.lora)}; "
            "continue with the same lora, or export the model merged and start from that"
        )
    model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in named_parameters(model):
            box = local_box(parameter)
            if name.endswith(LORA_SUFFIXES):
                value = _lora_part(name, parameter, adapter, seed)
            elif adapter and name in adapter.whole:
                value = _fill(adapter.whole[name], box)
            else:
                value = _base_part(model, name, box, weights)
                if adapter and not model.lora:
                    value = _merged(name, value, box, adapter)
            local_part(parameter).copy_(value)


@dataclasses.dataclass(frozen=True)
class _Weights:
    """Where the parameters are, by name; those that are nowhere are random for the seed."""

    tensors: TensorFolder
    stored: Mapping[str, Stored]
    seed: int


def _base_part(model: Decoder, name: str, box: Box, weights: _Weights) -> Tensor:
    """This rank's part of a weight; zero where the vocabulary is padded."""
    if name not in weights.stored:
        assert model.output_head and name == SCORE_PARAMETER, name
        whole = torch.empty(model.num_outputs, model.config.hidden_size)
        return _fill(whole.normal_(std=model.output_head.initial_std, generator=generator_for(name, weights.seed)), box)
    stored = weights.stored[name]
    value = _fill_from(stored, weights.tensors, box)
    if model.config.new_rows and name in VOCABULARY_PARAMETERS:
        value = value.float()
        set_new_rows(value, name, box, model.config.new_rows, stored, weights.tensors, weights.seed)
    return value


def _fill_from(stored: Stored, tensors: TensorFolder, box: Box) -> Tensor:
    """A box that may go beyond what is stored; zero there."""
    size = (max(0, min(box.size[0], stored.shape[0] - box.offset[0])), *box.size[1:])
    value = stored.read(tensors, box.offset, size)
    return value if size == box.size else _with_rows(value, box.size)


def _fill(whole: Tensor, box: Box) -> Tensor:
    """The box of a tensor that is there whole, and may have fewer rows; zero there."""
    value = whole[box.slices()]
    return value if tuple(value.shape) == box.size else _with_rows(value, box.size)


def _with_rows(value: Tensor, size: tuple[int, ...]) -> Tensor:
    filled = torch.zeros(size, dtype=value.dtype)
    filled[: value.shape[0]] = value
    return filled


def _merged(name: str, value: Tensor, box: Box, adapter: AdapterWeights) -> Tensor:
    pair = adapter.pair(name.removesuffix(".weight")) if name.endswith(".weight") else None
    if not pair:
        return value
    rows, columns = box.slices()
    return merged_weight(value, pair[0][:, columns], pair[1][rows], adapter.config.scale)


def _lora_part(name: str, parameter: Tensor, adapter: AdapterWeights | None, seed: int) -> Tensor:
    layer, _, which = name.rpartition(".")
    pair = adapter.pair(layer) if adapter else None
    if pair:
        whole = pair[0] if which == "lora_a" else pair[1]
    else:
        whole = torch.zeros(tuple(parameter.shape))
        if which == "lora_a":
            initialize_a(whole, generator_for(name, seed))
    return whole[local_box(parameter).slices()]


def _kind(config: LoraConfig) -> LoraConfig:
    """What must be equal for an adapter to be continued; dropout may change."""
    return dataclasses.replace(config, dropout=0.0)


def _describe(config: LoraConfig) -> str:
    stabilized = ", rank-stabilised" if config.rank_stabilized else ""
    return f"rank {config.rank}, alpha {config.alpha:g}{stabilized} on {' '.join(config.targets)}"
