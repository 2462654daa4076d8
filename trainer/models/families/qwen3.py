"""Qwen3: norms on queries and keys, head size apart from the hidden size."""

from __future__ import annotations

from typing import Any

from finecut.trainer.models.families.common import sizes
from finecut.trainer.models.families.family import Family
from finecut.trainer.models.families.fields import Fields
from finecut.trainer.models.families.names import named
from finecut.trainer.models.families.qwen2 import read_window
from finecut.trainer.models.families.rope_fields import read_rope


def _decoder_fields(fields: Fields) -> dict[str, Any]:
    fields.fixed("hidden_act", "silu")
    found = sizes(fields, head_size=128, key_heads=32)
    rope = read_rope(fields, found["max_positions"])
    has_bias = fields.flag("attention_bias")
    return found | {
        "rope": rope,
        "local": read_window(fields, rope, found["num_layers"]),
        "query_bias": has_bias,
        "output_bias": has_bias,
        "query_key_norm": True,
    }


FAMILY = Family("qwen3", _decoder_fields, named())
