"""Reads a model's weights into a decoder, each rank only its own part."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import torch
from torch import Tensor

from finecut.proto.config import UserError
from finecut.trainer.models.adapter import AdapterWeights
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.lora import LORA_SUFFIXES, LoraConfig, initialize_a, merged_weight
from finecut.trainer.models.safetensors_read import TensorFolder
from finecut.trainer.models.sharding import local_box, local_part, named_parameters
from finecut.trainer.models.source import ModelSource

_SHOWN = 5  # names in one error message


def materialize(model: Decoder, source: Path | ModelSource, device: torch.device | str, seed: int) -> None:
    """Gives a decoder on the meta device its memory on `device`, and its weights.

    Works before and after `fully_shard`: each rank reads only its slices. Adapters of the model start from the source's
    adapter where it has one of the same kind, else A is random (the same on every rank, whatever the world size) and
    B is zero. A source's adapter is merged into the weights of a model without adapters.

    Raises UserError, naming the tensors, when the files lack some, hold others, or have other shapes.
    """
    source = source if isinstance(source, ModelSource) else ModelSource(Path(source))
    tensors = TensorFolder(source.base)
    _check_tensors(model, tensors)
    adapter = AdapterWeights(source.adapter, model) if source.adapter else None
    if adapter and model.lora and _kind(adapter.config) != _kind(model.lora):
        raise UserError(
            f"{source.adapter}: its adapter is {_describe(adapter.config)}, but lora asks for {_describe(model.lora)}; "
            "continue with the same lora, or export the model merged and start from that"
        )
    model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in named_parameters(model):
            if name.endswith(LORA_SUFFIXES):
                value = _lora_part(name, parameter, adapter, seed)
            else:
                value = _base_part(model, name, parameter, tensors, None if model.lora else adapter)
            local_part(parameter).copy_(value)


def _base_part(
    model: Decoder, name: str, parameter: Tensor, tensors: TensorFolder, adapter: AdapterWeights | None
) -> Tensor:
    """This rank's part of a weight; zero where the vocabulary is padded."""
    box = local_box(parameter)
    tensor_name = model.config.tensor_family.tensor_name(name)
    available = tensors.shape(tensor_name)
    size = tuple(max(0, min(s, a - o)) for o, s, a in zip(box.offset, box.size, available, strict=True))
    value = tensors.read(tensor_name, box.offset, size)
    pair = adapter.pair(name.removesuffix(".weight")) if adapter else None
    if adapter and pair:
        rows, columns = box.slices()
        value = merged_weight(value, pair[0][:, columns], pair[1][rows], adapter.config.scale)
    if size == box.size:
        return value
    padded = torch.zeros(box.size, dtype=value.dtype)
    padded[: size[0]] = value
    return padded


def _lora_part(name: str, parameter: Tensor, adapter: AdapterWeights | None, seed: int) -> Tensor:
    layer, _, which = name.rpartition(".")
    pair = adapter.pair(layer) if adapter else None
    if pair:
        whole = pair[0] if which == "lora_a" else pair[1]
    else:
        whole = torch.zeros(tuple(parameter.shape))
        if which == "lora_a":
            initialize_a(whole, torch.Generator().manual_seed(_seed_of(name, seed)))
    return whole[local_box(parameter).slices()]


def _seed_of(name: str, seed: int) -> int:
    """A seed of its own for each parameter, so that neither the order nor the number of ranks matters."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


def _check_tensors(model: Decoder, tensors: TensorFolder) -> None:
    config = model.config
    expected = {
        config.tensor_family.tensor_name(name): model.exported_shape(name, parameter)
        for name, parameter in named_parameters(model)
        if not name.endswith(LORA_SUFFIXES)
    }
    ignored = config.tensor_family.ignored_suffixes
    # A tied head may be written out as a copy of the embedding; config.json says that it is tied, and that decides.
    ignored += ("lm_head.weight",) if config.tied_embeddings else ()
    missing = sorted(set(expected) - tensors.names)
    extra = sorted(name for name in tensors.names - set(expected) if not name.endswith(ignored))
    wrong = [
        f"{name} is {tensors.shape(name)}, not {shape}"
        for name, shape in expected.items()
        if name not in missing and tensors.shape(name) != shape
    ]
    problems = [
        f"{title}: {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
        for title, names in (("missing", missing), ("unknown", extra), ("of another shape", wrong))
        if names
    ]
    if problems:
        raise UserError(f"{tensors.folder}: the tensors do not fit config.json; " + "; ".join(problems))


def _kind(config: LoraConfig) -> LoraConfig:
    """What must be equal for an adapter to be continued; dropout may change."""
    return dataclasses.replace(config, dropout=0.0)


def _describe(config: LoraConfig) -> str:
    stabilized = ", rank-stabilised" if config.rank_stabilized else ""
    return f"rank {config.rank}, alpha {config.alpha:g}{stabilized} on {' '.join(config.targets)}"
