"""Writes a decoder as a Hugging Face model folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.families.stored import Stack, Stored
from finecut.trainer.models.heads import head_fields
from finecut.trainer.models.lora import LORA_SUFFIXES, lora_layers, merged_weight
from finecut.trainer.models.safetensors_write import TensorSpec, write_tensors
from finecut.trainer.models.sharding import gather, named_parameters
from finecut.trainer.models.tokenizer_files import copy_tokenizer

TENSOR_FILE = "model.safetensors"
MAX_SHARD_BYTES = 5_000_000_000  # Hugging Face's own bound on one file for years


def save_model(
    model: Decoder,
    folder: Path,
    source: Path,
    weight_type: torch.dtype,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes weights under Hugging Face's names, config.json, and what belongs to them from `source`.

    Adapters are merged in FP32 before the cast. The vocabulary loses its padding; a tied head stays tied.
    Collective: every rank calls it; tensors are gathered one at a time and rank 0 writes. The folder is not written
    atomically: give a temporary one and rename it.

    Args:
      source: model folder that config.json, tokenizer, chat template and generation config are taken from.
      weight_type: torch.bfloat16, torch.float16 or torch.float32.
      max_shard_bytes: bound on one safetensors file; beyond it there are several and an index.
    """
    parameters = [(n, p) for n, p in named_parameters(model) if not n.endswith(LORA_SUFFIXES)]
    stored = [model.config.tensor_family.stored(name, model.exported_shape(name, p))[0] for name, p in parameters]
    specs = [TensorSpec(name, weight_type, shape) for way in stored for name, shape in way.shapes().items()]
    if write_tensors(folder, TENSOR_FILE, specs, _values(model, parameters, stored), max_shard_bytes):
        _write_companions(model, folder, source, weight_type)


def _values(model: Decoder, parameters: list[tuple[str, Tensor]], stored: list[Stored]) -> Iterator[Tensor]:
    adapters = dict(lora_layers(model))
    for (name, parameter), way in zip(parameters, stored, strict=True):
        value = gather(parameter)
        if adapter := adapters.get(name.removesuffix(".weight")):
            value = merged_weight(value, gather(adapter.lora_a), gather(adapter.lora_b), adapter.scale)
        value = value[: model.exported_shape(name, parameter)[0]]
        yield from value.unbind() if isinstance(way, Stack) else (value,)


def _write_companions(model: Decoder, folder: Path, source: Path, weight_type: torch.dtype) -> None:
    fields = json.loads((source / "config.json").read_text(encoding="utf-8"))
    # transformers 5 says `dtype`; what reads older files says `torch_dtype`. Keep to the source's word.
    fields["torch_dtype" if "torch_dtype" in fields else "dtype"] = str(weight_type).removeprefix("torch.")
    fields["vocab_size"] = model.config.vocabulary_size
    if model.config.semantic_id_count:
        fields["semantic_id_count"] = model.config.semantic_id_count
    fields.update(head_fields(model, fields))
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    copy_tokenizer(source, folder)
    if (source / "generation_config.json").exists():
        shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")
