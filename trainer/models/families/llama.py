"""Llama 2 and 3, SmolLM2 and everything else that calls itself LlamaForCausalLM."""

from __future__ import annotations

from typing import Any

from finecut.trainer.models.families.common import sizes
from finecut.trainer.models.families.family import Family
from finecut.trainer.models.families.fields import Fields
from finecut.trainer.models.families.names import named
from finecut.trainer.models.families.rope_fields import read_rope


def _decoder_fields(fields: Fields) -> dict[str, Any]:
    fields.fixed("hidden_act", "silu")
    fields.fixed("sliding_window", None)
    found = sizes(fields)
    has_bias = fields.flag("attention_bias")
    return found | {
        "rope": read_rope(fields, found["max_positions"]),
        "query_bias": has_bias,
        "output_bias": has_bias,
        "mlp_bias": fields.flag("mlp_bias"),
    }


FAMILY = Family("llama", _decoder_fields, named())
