"""The shape of a decoder, read from a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finecut.proto.config import UserError
from finecut.trainer.models.architecture import Activation, Experts, LocalAttention, NewRows
from finecut.trainer.models.families.family import Family
from finecut.trainer.models.families.fields import Fields
from finecut.trainer.models.families.registry import FAMILIES
from finecut.trainer.models.rope_config import Rope

# A head whose size is no multiple of 64 falls off the fast matrix kernels on GPUs (a third of the speed).
VOCABULARY_MULTIPLE = 64


def padded(count: int) -> int:
    """Rows that a matrix of `count` rows has inside."""
    return -(-count // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything that says what a decoder computes. Sizes are counts of elements."""

    family: str
    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_heads: int
    head_size: int
    max_positions: int
    norm_epsilon: float
    tied_embeddings: bool
    rope: Rope
    # Layers with a window; the others see their whole document.
    local: LocalAttention | None = None
    # Layers with a mixture of experts; the others have one feed-forward part of `intermediate_size`.
    experts: Experts | None = None
    activation: Activation = Activation.SILU
    # Biases of queries, keys and values; of the attention's output; of the feed-forward part.
    query_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    # A norm over each head's query and key, before the rotation.
    query_key_norm: bool = False
    # A norm after each part of a layer, as well as before.
    norms_after: bool = False
    # Norms multiply by 1 + weight.
    norm_plus_one: bool = False
    # What attention scores are multiplied by; None: 1 / sqrt(head_size).
    attention_scale: float | None = None
    # Bounds on attention scores and on logits: cap * tanh(x / cap). None: no bound.
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    # What embeddings are multiplied by.
    embedding_scale: float = 1.0
    # Rows of the vocabulary after the text's that stand for items; id i is the text's size + i.
    semantic_id_count: int = 0
    # Rows that are initialised rather than read. None: the vocabulary is the source's.
    new_rows: NewRows | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_key_heads:
            raise UserError(f"num_key_value_heads: {self.num_key_heads} does not divide the {self.num_heads} heads")
        if self.head_size % 2:
            raise UserError(f"head_dim: {self.head_size} must be even, for rotary positions")

    @property
    def padded_vocabulary_size(self) -> int:
        """Rows of the embedding inside; those from `vocabulary_size` on are zero and are never exported."""
        return padded(self.vocabulary_size)

    @property
    def tensor_family(self) -> Family:
        """The family's names."""
        return FAMILIES[self.family]

    def is_local(self, layer: int) -> bool:
        """Whether a layer has the window."""
        return self.local is not None and layer in self.local.layers

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has a mixture of experts."""
        return self.experts is not None and layer in self.experts.layers

    @staticmethod
    def from_folder(folder: Path) -> DecoderConfig:
        """Reads `folder`/config.json.

        Raises UserError, with every problem at once, for a missing file, an unknown family, and fields that are wrong
        or that the decoder does not know or do.
        """
        path = Path(folder) / "config.json"
        values = read_config(path)
        model_type = values.get("model_type")
        if model_type not in FAMILIES:
            known = ", ".join(sorted(FAMILIES))
            strange = ", ".join(_unknown_to_all(values)) or "none"
            raise UserError(
                f"{path}: model_type: {model_type!r} is not supported; supported families: {known}; fields that none of"
                f" them knows: {strange}"
            )
        try:
            fields = Fields(values)
            arguments = FAMILIES[model_type].decoder_fields(fields)
            fields.finish()
            return DecoderConfig(family=model_type, **arguments)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _unknown_to_all(values: Mapping[str, Any]) -> list[str]:
    """Fields that no family reads, so that one sees what a new family would need."""
    unknown = list(values)
    for family in FAMILIES.values():
        fields = Fields(values)
        family.decoder_fields(fields)
        unknown = [name for name in fields.unknown() if name in unknown]
    return unknown


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a config.json. Raises UserError when there is none, or none that is JSON."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a model folder in Hugging Face's layout has one") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no JSON object")
    return values
