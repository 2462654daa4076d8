"""Gemma 3's text models: local and global layers, four norms a layer, scaled embeddings, (1 + w) norms, tied head."""

from __future__ import annotations

from typing import Any

from finecut.trainer.models.architecture import Activation
from finecut.trainer.models.families.common import layers_of_type, local_attention, sizes
from finecut.trainer.models.families.family import Family
from finecut.trainer.models.families.fields import Fields
from finecut.trainer.models.families.names import LAYER, named
from finecut.trainer.models.families.rope_fields import parse_rope
from finecut.trainer.models.rope_config import Rope

_LAYER = {
    **LAYER,
    "attention_out_norm.weight": "post_attention_layernorm.weight",
    "mlp_norm.weight": "pre_feedforward_layernorm.weight",
    "mlp_out_norm.weight": "post_feedforward_layernorm.weight",
}


def _decoder_fields(fields: Fields) -> dict[str, Any]:
    # The released configs name it twice.
    fields.fixed("hidden_activation", "gelu_pytorch_tanh", None)
    fields.fixed("hidden_act", "gelu_pytorch_tanh", None)
    fields.fixed("use_bidirectional_attention", False, None)
    # transformers and vLLM read it and ignore it, so the served model would not be the trained one.
    fields.fixed("attn_logit_softcapping", None)
    found = sizes(fields, head_size=256, key_heads=4)
    found["tied_embeddings"] = fields.flag("tie_word_embeddings", default=True)
    everywhere, nearby = _ropes(fields, found["max_positions"])
    has_bias = fields.flag("attention_bias")
    window = fields.size("sliding_window", 4096)
    return found | {
        "rope": everywhere,
        "local": local_attention(window, nearby, _local_layers(fields, found["num_layers"])),
        "query_bias": has_bias,
        "output_bias": has_bias,
        "query_key_norm": True,
        "norms_after": True,
        "norm_plus_one": True,
        "activation": Activation.GELU_TANH,
        "attention_scale": fields.real("query_pre_attn_scalar", 256) ** -0.5,
        "logit_soft_cap": fields.optional_real("final_logit_softcapping"),
        "embedding_scale": found["hidden_size"] ** 0.5,
    }


def _local_layers(fields: Fields, num_layers: int) -> list[int]:
    """All but every sixth layer, or as the config says."""
    every = fields.size("sliding_window_pattern", fields.get("_sliding_window_pattern") or 6)
    layers = layers_of_type(fields, num_layers)
    return [i for i in range(num_layers) if (i + 1) % every] if layers is None else layers


def _ropes(fields: Fields, max_positions: int) -> tuple[Rope, Rope]:
    """Of the layers that see everything, and of the local ones."""
    by_type = fields.get("rope_parameters") or {}
    if not isinstance(by_type, dict) or (by_type and not by_type.keys() <= {"full_attention", "sliding_attention"}):
        fields.problem(f"rope_parameters: {by_type!r} must hold full_attention and sliding_attention")
        by_type = {}
    theta, local_theta = fields.real("rope_theta", 1_000_000.0), fields.real("rope_local_base_freq", 10_000.0)
    everywhere = by_type.get("full_attention") or fields.get("rope_scaling") or {}
    fields.ignore("rope_scaling")
    nearby = by_type.get("sliding_attention") or {}
    return (
        parse_rope(fields, everywhere, theta, max_positions),
        parse_rope(fields, nearby, local_theta, max_positions),
    )


FAMILY = Family("gemma3_text", _decoder_fields, named(_LAYER), overflows_fp16=True)
