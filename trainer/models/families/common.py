"""The fields of config.json that all families have."""

from __future__ import annotations

from typing import Any

from finecut.trainer.models.architecture import LocalAttention
from finecut.trainer.models.families.fields import Fields
from finecut.trainer.models.rope_config import Rope


def sizes(fields: Fields, head_size: int | None = None, key_heads: int | None = None) -> dict[str, Any]:
    """Sizes, epsilon and tying. `head_size` and `key_heads` are what their absence means; None: as Llama has it."""
    hidden_size, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    return {
        "vocabulary_size": fields.size("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": fields.size("intermediate_size"),
        "num_layers": fields.size("num_hidden_layers"),
        "num_heads": num_heads,
        "num_key_heads": fields.size("num_key_value_heads", key_heads or num_heads),
        "head_size": fields.size("head_dim", head_size or max(1, hidden_size // num_heads)),
        "max_positions": fields.size("max_position_embeddings"),
        "norm_epsilon": fields.real("rms_norm_eps", 1e-6),
        "tied_embeddings": fields.flag("tie_word_embeddings"),
        "semantic_id_count": fields.size("semantic_id_count", 0, smallest=0),
    }


def local_attention(window: int | None, rope: Rope, layers: list[int]) -> LocalAttention | None:
    """The layers with a window, where there are any."""
    return LocalAttention(window, rope, tuple(layers)) if window and layers else None


def layers_of_type(fields: Fields, num_layers: int) -> list[int] | None:
    """The layers that `layer_types` gives a window; None where the field is absent."""
    types = fields.get("layer_types")
    if types is None:
        return None
    known = ("sliding_attention", "full_attention")
    if not isinstance(types, list) or len(types) != num_layers or any(t not in known for t in types):
        fields.problem(f"layer_types: {types!r} must name one of {', '.join(known)} for each of {num_layers} layers")
        return []
    return [i for i, t in enumerate(types) if t == "sliding_attention"]
