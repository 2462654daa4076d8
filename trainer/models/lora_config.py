"""Which layers get low-rank adapters. No torch: plans read it, too."""

from __future__ import annotations

import dataclasses
import math

from finecut.proto.config import UserError

ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = (*ATTENTION_TARGETS, "gate_proj", "up_proj", "down_proj")


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
