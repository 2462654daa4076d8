"""Names of tensors that the families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from finecut.trainer.models.families.stored import Stored, Whole

_OUTER = {
    "embedding.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "score.weight": "score.weight",
}
_LINEAR = {
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}
# Ours to Hugging Face's, within a layer.
LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    **{f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in _LINEAR.items() for kind in ("weight", "bias")},
}


def split_layer(parameter: str) -> tuple[str, str]:
    """The index and the rest of the name of a layer's parameter."""
    layers, index, rest = parameter.split(".", 2)
    assert layers == "layers", parameter
    return index, rest


def named(layer: Mapping[str, str] = LAYER) -> Callable[[str, tuple[int, ...]], tuple[Stored, ...]]:
    """A family's `stored` where every parameter is a tensor of its own, given the names within a layer."""

    def stored(parameter: str, shape: tuple[int, ...]) -> tuple[Stored, ...]:
        if parameter in _OUTER:
            return (Whole(_OUTER[parameter], shape),)
        index, rest = split_layer(parameter)
        return (Whole(f"model.layers.{index}.{layer[rest]}", shape),)

    return stored
