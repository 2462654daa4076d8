"""Llama 2 and 3, SmolLM2 and everything else that calls itself LlamaForCausalLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finecut.proto.config import UserError
from finecut.trainer.models.families.family import Family
from finecut.trainer.models.rope import LinearScaling, Llama3Scaling, Rope

# Fields that change what the model computes in a way the decoder does not, and the only value it takes for them.
_FIXED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu",),
    "pretraining_tp": (1, None),
    "quantization_config": (None,),
    "sliding_window": (None,),
}

# Ours to Hugging Face's, within a layer.
_LAYER_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q_proj.weight": "self_attn.q_proj.weight",
    "attention.k_proj.weight": "self_attn.k_proj.weight",
    "attention.v_proj.weight": "self_attn.v_proj.weight",
    "attention.o_proj.weight": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.gate_proj.weight": "mlp.gate_proj.weight",
    "mlp.up_proj.weight": "mlp.up_proj.weight",
    "mlp.down_proj.weight": "mlp.down_proj.weight",
}
_OUTER_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


def _decoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_unsupported(config)
    num_heads = _number(config, "num_attention_heads")
    hidden_size = _number(config, "hidden_size")
    return {
        "vocabulary_size": _number(config, "vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": _number(config, "intermediate_size"),
        "num_layers": _number(config, "num_hidden_layers"),
        "num_heads": num_heads,
        "num_key_heads": config.get("num_key_value_heads") or num_heads,
        "head_size": config.get("head_dim") or hidden_size // num_heads,
        "max_positions": _number(config, "max_position_embeddings"),
        "norm_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
        "rope": _rope(config),
    }


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    problems = [
        f"{field}: {config[field]!r} is not supported; it must be {allowed[0]!r}"
        for field, allowed in _FIXED.items()
        if field in config and config[field] not in allowed
    ]
    if problems:
        raise UserError("the decoder does not do what it asks for: " + "; ".join(problems))


def _number(config: Mapping[str, Any], field: str) -> int:
    value = config.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{field}: {value!r} must be a whole number of at least 1")
    return value


def _rope(config: Mapping[str, Any]) -> Rope:
    """`rope_parameters` holds everything since transformers 5; before, `rope_theta` stood beside `rope_scaling`."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    try:
        match kind:
            case "default":
                return Rope(theta)
            case "linear":
                return Rope(theta, LinearScaling(float(parameters["factor"])))
            case "llama3":
                return Rope(
                    theta,
                    Llama3Scaling(
                        factor=float(parameters["factor"]),
                        low_freq_factor=float(parameters["low_freq_factor"]),
                        high_freq_factor=float(parameters["high_freq_factor"]),
                        original_max_position_embeddings=int(parameters["original_max_position_embeddings"]),
                    ),
                )
    except KeyError as missing:
        raise UserError(f"rope of type {kind!r} lacks the field {missing}") from None
    raise UserError(f"rope_type: {kind!r} is not supported; use a model with default, linear or llama3")


def _tensor_name(parameter: str) -> str:
    if parameter in _OUTER_NAMES:
        return _OUTER_NAMES[parameter]
    layers, index, rest = parameter.split(".", 2)
    assert layers == "layers", parameter
    return f"model.layers.{index}.{_LAYER_NAMES[rest]}"


FAMILY = Family(
    model_type="llama",
    decoder_fields=_decoder_fields,
    tensor_name=_tensor_name,
    ignored_suffixes=(".rotary_emb.inv_freq",),
)
