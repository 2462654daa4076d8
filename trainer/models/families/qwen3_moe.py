"""Qwen3-MoE: Qwen3 with a mixture of experts in most layers.

The router is trained by the loss alone: no load-balancing loss is added. config.json's `router_aux_loss_coef` counts
only where `output_router_logits` asks for it, which is refused.
"""

from __future__ import annotations

from typing import Any

from finecut.trainer.models.architecture import Experts
from finecut.trainer.models.families.common import local_attention, sizes
from finecut.trainer.models.families.family import Family
from finecut.trainer.models.families.fields import Fields
from finecut.trainer.models.families.names import LAYER, named, split_layer
from finecut.trainer.models.families.rope_fields import read_rope
from finecut.trainer.models.families.stored import Part, Stack, Stored, Whole

_PLAIN = named({**LAYER, "mlp.router.weight": "mlp.gate.weight"})


def _decoder_fields(fields: Fields) -> dict[str, Any]:
    fields.fixed("hidden_act", "silu")
    # Where it is true, transformers adds a load-balancing loss to the training loss.
    fields.fixed("output_router_logits", False, None)
    fields.ignore("router_aux_loss_coef", "max_window_layers")
    found = sizes(fields, key_heads=4)
    num_layers = found["num_layers"]
    rope = read_rope(fields, found["max_positions"])
    window = fields.size("sliding_window", 4096)
    window_used = window if fields.flag("use_sliding_window") else None
    has_bias = fields.flag("attention_bias")
    return found | {
        "rope": rope,
        "local": local_attention(window_used, rope, list(range(num_layers))),
        "query_bias": has_bias,
        "output_bias": has_bias,
        "query_key_norm": True,
        "experts": _experts(fields, num_layers),
    }


def _experts(fields: Fields, num_layers: int) -> Experts | None:
    # transformers 5 writes the older name's synonym.
    name = "num_local_experts" if fields.get("num_local_experts") is not None else "num_experts"
    fields.ignore("num_experts", "num_local_experts")
    count = fields.size(name, 128)
    every = fields.size("decoder_sparse_step", 1)
    dense = fields.indices("mlp_only_layers", num_layers)
    layers = tuple(i for i in range(num_layers) if i not in dense and (i + 1) % every == 0)
    experts = Experts(
        count=count,
        chosen=fields.size("num_experts_per_tok", 8, largest=count),
        intermediate_size=fields.size("moe_intermediate_size", 768),
        normalized=fields.flag("norm_topk_prob"),
        layers=layers,
    )
    return experts if layers else None


def _stored(parameter: str, shape: tuple[int, ...]) -> tuple[Stored, ...]:
    """Experts are tensors of their own on the hub; transformers 5 can also write them as stacks, gate and up in one."""
    if ".mlp.experts." not in parameter:
        return _PLAIN(parameter, shape)
    index, rest = split_layer(parameter)
    which = rest.rpartition(".")[2]
    experts = f"model.layers.{index}.mlp.experts"
    apart = Stack(tuple(f"{experts}.{e}.{which}.weight" for e in range(shape[0])), shape)
    if which == "down_proj":
        return apart, Whole(f"{experts}.down_proj", shape)
    begin = 0 if which == "gate_proj" else shape[1]
    return apart, Part(f"{experts}.gate_up_proj", shape, begin, 2 * shape[1])


FAMILY = Family("qwen3_moe", _decoder_fields, _stored)
