"""Mistral 7B and its kin: every layer has the same window."""

from __future__ import annotations

from typing import Any

from finecut.trainer.models.families.common import local_attention, sizes
from finecut.trainer.models.families.family import Family
from finecut.trainer.models.families.fields import Fields
from finecut.trainer.models.families.names import named
from finecut.trainer.models.families.rope_fields import read_rope

_DEFAULT_WINDOW = 4096  # transformers' own, where the field is absent; null means none


def _decoder_fields(fields: Fields) -> dict[str, Any]:
    fields.fixed("hidden_act", "silu")
    # Ministral's alternation, which transformers' Mistral does not do either.
    fields.fixed("layer_types", None)
    found = sizes(fields, key_heads=8)
    rope = read_rope(fields, found["max_positions"])
    is_null = fields.get("sliding_window", _DEFAULT_WINDOW) is None
    window = None if is_null else fields.size("sliding_window", _DEFAULT_WINDOW)
    layers = list(range(found["num_layers"]))
    return found | {"rope": rope, "local": local_attention(window, rope, layers)}


FAMILY = Family("mistral", _decoder_fields, named())
