"""Low-rank adapters (Hu et al., 2021).

Shapes: O output size, I input size, R rank.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from finecut.proto.config import UserError
from finecut.trainer.models.mixture import MixtureOfExperts
from finecut.trainer.models.sharding import plain_name

ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = (*ATTENTION_TARGETS, "gate_proj", "up_proj", "down_proj")
LORA_SUFFIXES = (".lora_a", ".lora_b")  # of the names of an adapter's parameters


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which linear layers get an adapter, and of which kind. Raises UserError for values that mean nothing."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    # Names of linear layers; empty means all of TARGETS, or those of attention where the model has experts.
    targets: tuple[str, ...] = ()
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown:
            raise UserError(f"lora.targets: {', '.join(unknown)}: no such linear layer; use {', '.join(TARGETS)}")
        if self.rank < 1:
            raise UserError(f"lora.rank: {self.rank} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout: {self.dropout} must be at least 0 and less than 1")
        object.__setattr__(self, "targets", tuple(t for t in TARGETS if t in self.targets))

    def for_model(self, has_experts: bool) -> LoraConfig:
        """With the targets written out. Raises UserError for targets that a model with experts cannot have."""
        if not has_experts:
            return dataclasses.replace(self, targets=self.targets or TARGETS)
        refused = [target for target in self.targets if target not in ATTENTION_TARGETS]
        if refused:
            raise UserError(
                f"lora.targets: {', '.join(refused)}: a model with experts has adapters on attention only; use"
                f" {', '.join(ATTENTION_TARGETS)}, or leave lora.targets unset"
            )
        return dataclasses.replace(self, targets=self.targets or ATTENTION_TARGETS)

    @property
    def scale(self) -> float:
        """What the update is multiplied by: alpha / R, or alpha / sqrt(R) when rank-stabilised."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class LoraLinear(nn.Linear):
    """A frozen linear layer plus scale * B A. The weight keeps its name; the adapter is `lora_a` and `lora_b`."""

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        device = base.weight.device
        self.weight = base.weight.requires_grad_(False)
        self.bias = base.bias
        self.lora_a = nn.Parameter(torch.empty(config.rank, self.in_features, device=device))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, config.rank, device=device))
        if not self.lora_a.is_meta:
            initialize_a(self.lora_a)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = config.scale
        self.is_enabled = True  # False: the layer is what it is without its adapter

    def forward(self, x_BLI: Tensor) -> Tensor:
        if not self.is_enabled:
            return functional.linear(x_BLI, self.weight, self.bias)
        low_BLR = functional.linear(self.dropout(x_BLI), self.lora_a)
        return functional.linear(x_BLI, self.weight, self.bias) + self.update(low_BLR)

    def update(self, low_BLR: Tensor) -> Tensor:
        """What the adapter adds, [B, L, O], given A x."""
        # Scaled where it is smallest, at rank size.
        return functional.linear(low_BLR * self.scale, self.lora_b)


def project(x_BLI: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """What each of the layers makes of x. Adapters without dropout read x once, as one product for all of them."""
    adapted = [layer for layer in layers if isinstance(layer, LoraLinear) and layer.is_enabled]
    if len(adapted) < 2 or any(layer.dropout.p and layer.training for layer in adapted):
        return tuple(layer(x_BLI) for layer in layers)
    parts = [layer.lora_a for layer in adapted]
    low = functional.linear(x_BLI, torch.cat(parts)).split([part.shape[0] for part in parts], dim=-1)
    updates = {id(layer): layer.update(low_BLR) for layer, low_BLR in zip(adapted, low, strict=True)}

    def output(layer: nn.Linear) -> Tensor:
        if id(layer) not in updates:
            return layer(x_BLI)
        return functional.linear(x_BLI, layer.weight, layer.bias) + updates[id(layer)]

    return tuple(output(layer) for layer in layers)


def initialize_a(lora_a_RI: Tensor, generator: torch.Generator | None = None) -> None:
    """Kaiming-uniform with a = sqrt(5), as in the authors' code. B starts at zero, so the model starts unchanged."""
    nn.init.kaiming_uniform_(lora_a_RI, a=math.sqrt(5), generator=generator)


def merged_weight(weight_OI: Tensor, lora_a_RI: Tensor, lora_b_OR: Tensor, scale: float) -> Tensor:
    """weight + scale * B A in FP32: the layer without its adapter. Works on slices (rows of B, columns of A)."""
    return weight_OI.float() + scale * (lora_b_OR.float() @ lora_a_RI.float())


def apply_lora(model: nn.Module, config: LoraConfig) -> None:
    """Freezes the model, save what is new in it, and gives its target layers adapters. Call it before sharding.

    New are an output head, and rows of the vocabulary: where there are some, embedding and head are trained whole.

    `model.lora` holds the config, its targets written out, from then on; a model without adapters has None there.
    Raises UserError for targets that the model cannot have.
    """
    assert not any(lora_layers(model)), "the model has adapters already"
    config = config.for_model(has_experts=any(isinstance(module, MixtureOfExperts) for module in model.modules()))
    model.requires_grad_(False)
    names = ["score"] + (["embedding", "head"] if model.config.new_rows else [])
    for name in names:
        if (module := getattr(model, name, None)) is not None:
            module.requires_grad_(True)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if name in config.targets and isinstance(layer, nn.Linear):
                setattr(parent, name, LoraLinear(layer, config))
    model.lora = config


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The layers with adapters, by name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield plain_name(name), module
