"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from finecut.proto.config import UserError
from finecut.trainer.models.decoder import SCORE_PARAMETER, Decoder
from finecut.trainer.models.lora import LoraConfig, lora_layers
from finecut.trainer.models.safetensors_read import TensorFolder
from finecut.trainer.models.safetensors_write import TensorSpec, write_tensors
from finecut.trainer.models.sharding import gather, plain_name

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
# Modules that are trained and saved whole beside the adapters, as PEFT's `modules_to_save`.
HEAD_MODULES = ("score",)


def peft_names(model: Decoder, layer: str) -> tuple[str, str]:
    """PEFT's names of a layer's A and B."""
    layer = _peft_name(model, f"{layer}.weight").removesuffix(".weight")
    return f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"


def _peft_name(model: Decoder, parameter: str) -> str:
    return f"base_model.model.{model.config.tensor_family.tensor_name(parameter)}"


def read_lora_config(folder: Path) -> LoraConfig:
    """The adapter's kind. Raises UserError for kinds of adapter that the decoder does not have."""
    path = Path(folder) / CONFIG_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        config = LoraConfig(
            rank=int(fields["r"]),
            alpha=float(fields["lora_alpha"]),
            dropout=float(fields.get("lora_dropout") or 0.0),
            targets=tuple(fields["target_modules"]),
            rank_stabilized=bool(fields.get("use_rslora", False)),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a readable adapter config ({error!r})") from None
    plain = {"peft_type": "LORA", "bias": "none", "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}}
    if set(fields.get("modules_to_save") or ()) - set(HEAD_MODULES):
        raise UserError(
            f"{path}: modules_to_save: {fields['modules_to_save']!r} is not supported, save {HEAD_MODULES[0]!r} for an"
            " output head"
        )
    plain |= {"fan_in_fan_out": False, "layers_to_transform": None}
    for field, value in plain.items():
        if field in fields and fields[field] != value and (fields[field] or value):
            raise UserError(f"{path}: {field}: {fields[field]!r} is not supported; it must be {value!r}")
    return config


class AdapterWeights:
    """The A and B of an adapter folder, by our layer names, checked against the model.

    `whole` holds the parameters that the adapter replaces, an output head's, by our name.
    """

    def __init__(self, folder: Path, model: Decoder) -> None:
        self.config = read_lora_config(folder)
        self._tensors = TensorFolder(folder, TENSOR_FILE)
        self._model = model
        self._layers = {
            plain_name(name): layer
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in self.config.targets
        }
        expected = {name for layer in self._layers for name in peft_names(model, layer)}
        head = {f"{module}.weight": _peft_name(model, f"{module}.weight") for module in self._head_modules(folder)}
        expected |= set(head.values())
        if problems := sorted(expected ^ self._tensors.names):
            kinds = [f"{name} ({'missing' if name in expected else 'unknown'})" for name in problems[:5]]
            raise UserError(f"{folder}: the adapter does not fit its base model: {', '.join(kinds)}")
        self.whole = {
            name: self._head(name, tensor, dict(model.named_parameters())[name]) for name, tensor in head.items()
        }

    def _head_modules(self, folder: Path) -> tuple[str, ...]:
        fields = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
        if not fields.get("modules_to_save"):
            return ()
        if self._model.output_head is None:
            raise UserError(f"{folder}: the adapter has an output head, and here the model is used without one")
        return HEAD_MODULES

    def _head(self, name: str, tensor: str, parameter: Tensor) -> Tensor:
        shape = self._model.exported_shape(name, parameter)
        if self._tensors.shape(tensor) != shape:
            raise UserError(f"{self._tensors.folder}: {tensor} is {self._tensors.shape(tensor)}, not {shape}")
        return self._tensors.read(tensor, (0,) * len(shape), shape)

    def pair(self, layer: str) -> tuple[Tensor, Tensor] | None:
        """A and B of a layer, whole, or None for a layer without an adapter."""
        if layer not in self._layers:
            return None
        linear = self._layers[layer]
        shapes = ((self.config.rank, linear.in_features), (linear.out_features, self.config.rank))
        pair = []
        for name, shape in zip(peft_names(self._model, layer), shapes, strict=True):
            if self._tensors.shape(name) != shape:
                raise UserError(
                    f"{self._tensors.folder}: {name} has shape {self._tensors.shape(name)}; the model needs {shape}"
                )
            pair.append(self._tensors.read(name, (0, 0), shape))
        return pair[0], pair[1]


def save_adapter(model: Decoder, folder: Path, base_model: str) -> None:
    """Writes the adapters, and an output head, in PEFT's format, in FP32. Collective; rank 0 writes.

    Args:
      base_model: folder or hub id of the base model, as peft's `base_model_name_or_path`.
    """
    assert model.lora is not None, "the model has no adapters"
    specs: list[TensorSpec] = []
    parameters: list[Tensor] = []
    for layer, linear in lora_layers(model):
        for name, parameter in zip(peft_names(model, layer), (linear.lora_a, linear.lora_b), strict=True):
            specs.append(TensorSpec(name, torch.float32, tuple(parameter.shape)))
            parameters.append(parameter)
    if model.output_head:
        name, parameter = SCORE_PARAMETER, model.score.weight
        specs.append(TensorSpec(_peft_name(model, name), torch.float32, model.exported_shape(name, parameter)))
        parameters.append(parameter)

    def values() -> Iterator[Tensor]:
        # An output head is padded inside.
        return (gather(parameter)[: spec.shape[0]] for parameter, spec in zip(parameters, specs, strict=True))

    if write_tensors(folder, TENSOR_FILE, specs, values(), max_shard_bytes=None):
        fields = _peft_config(model.lora, base_model, model.output_head is not None)
        (folder / CONFIG_FILE).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _peft_config(config: LoraConfig, base_model: str, has_head: bool) -> dict[str, object]:
    return {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": list(config.targets),
        "modules_to_save": list(HEAD_MODULES) if has_head else None,
        "task_type": "SEQ_CLS" if has_head else "CAUSAL_LM",
        "use_rslora": config.rank_stabilized,
    }
