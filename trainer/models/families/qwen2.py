"""Qwen2 and Qwen2.5: biases on queries, keys and values; the upper layers may have a window."""

from __future__ import annotations

from typing import Any

from finecut.trainer.models.architecture import LocalAttention
from finecut.trainer.models.families.common import layers_of_type, local_attention, sizes
from finecut.trainer.models.families.family import Family
from finecut.trainer.models.families.fields import Fields
from finecut.trainer.models.families.names import named
from finecut.trainer.models.families.rope_fields import read_rope
from finecut.trainer.models.rope_config import Rope


def _decoder_fields(fields: Fields) -> dict[str, Any]:
    fields.fixed("hidden_act", "silu")
    found = sizes(fields, key_heads=32)
    rope = read_rope(fields, found["max_positions"])
    return found | {
        "rope": rope,
        "local": read_window(fields, rope, found["num_layers"]),
        "query_bias": True,
    }


def read_window(fields: Fields, rope: Rope, num_layers: int) -> LocalAttention | None:
    """Layers from `max_window_layers` on have the window, or those that `layer_types` names, if it is used at all."""
    first = fields.size("max_window_layers", 28, smallest=0)
    window = fields.size("sliding_window", 4096)
    layers = layers_of_type(fields, num_layers)
    if layers is None:
        layers = [i for i in range(num_layers) if i >= first]
    return local_attention(window if fields.flag("use_sliding_window") else None, rope, layers)


FAMILY = Family("qwen2", _decoder_fields, named())
