"""The shape of a decoder, read from a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from finecut.proto.config import UserError
from finecut.trainer.models.families.family import Family
from finecut.trainer.models.families.registry import FAMILIES
from finecut.trainer.models.rope import Rope

# A head whose size is no multiple of 64 falls off the fast matrix kernels on GPUs (a third of the speed).
VOCABULARY_MULTIPLE = 64


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

    def __post_init__(self) -> None:
        if self.num_heads % self.num_key_heads:
            raise UserError(f"num_key_value_heads: {self.num_key_heads} does not divide the {self.num_heads} heads")
        if self.head_size % 2:
            raise UserError(f"head_dim: {self.head_size} must be even, for rotary positions")

    @property
    def padded_vocabulary_size(self) -> int:
        """Rows of the embedding inside; those from `vocabulary_size` on are zero and are never exported."""
        return -(-self.vocabulary_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def tensor_family(self) -> Family:
        """The family's names."""
        return FAMILIES[self.family]

    @staticmethod
    def from_folder(folder: Path) -> DecoderConfig:
        """Reads `folder`/config.json. Raises UserError for a missing file, an unknown family or unsupported fields."""
        path = Path(folder) / "config.json"
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; a model folder in Hugging Face's layout has one") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as JSON: {error}") from None
        model_type = fields.get("model_type") if isinstance(fields, dict) else None
        if model_type not in FAMILIES:
            known = ", ".join(sorted(FAMILIES))
            raise UserError(f"{path}: model_type: {model_type!r} is not supported; supported families: {known}")
        try:
            return DecoderConfig(family=model_type, **FAMILIES[model_type].decoder_fields(fields))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
