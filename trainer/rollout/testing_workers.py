"""What vLLM's workers hold of a small model, for tests: modules with the fields that its layers have.

families_test holds the real ones to the trainer's weights on one rank.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

HIDDEN, INNER, HEADS, KEY_HEADS, HEAD_SIZE, VOCABULARY = 64, 160, 8, 2, 16, 100


def _whole(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


TENSORS = {
    "model.embed_tokens.weight": _whole(VOCABULARY, HIDDEN),
    "model.layers.0.self_attn.q_proj.weight": _whole(HEADS * HEAD_SIZE, HIDDEN),
    "model.layers.0.self_attn.q_proj.bias": _whole(HEADS * HEAD_SIZE),
    "model.layers.0.self_attn.k_proj.weight": _whole(KEY_HEADS * HEAD_SIZE, HIDDEN),
    "model.layers.0.self_attn.k_proj.bias": _whole(KEY_HEADS * HEAD_SIZE),
    "model.layers.0.self_attn.v_proj.weight": _whole(KEY_HEADS * HEAD_SIZE, HIDDEN) + 1,
    "model.layers.0.self_attn.v_proj.bias": _whole(KEY_HEADS * HEAD_SIZE) + 1,
    "model.layers.0.self_attn.o_proj.weight": _whole(HIDDEN, HEADS * HEAD_SIZE) + 2,
    "model.layers.0.mlp.gate_proj.weight": _whole(INNER, HIDDEN),
    "model.layers.0.mlp.up_proj.weight": _whole(INNER, HIDDEN) + 1,
    "model.layers.0.mlp.down_proj.weight": _whole(HIDDEN, INNER) + 2,
    "model.norm.weight": _whole(HIDDEN),
}


def _module(rank: int, size: int, parameters: dict[str, Tensor], **fields: Any) -> Any:
    made = nn.Module()
    for name, value in ({"tp_rank": rank, "tp_size": size} | fields).items():
        setattr(made, name, value)
    for name, value in parameters.items():
        made.register_parameter(name, nn.Parameter(value.clone()))
    return made


def _shard(name: str, rank: int, size: int, dimension: int = 0) -> Tensor:
    return TENSORS[name].chunk(size, dimension)[rank]


def model_of(rank: int, size: int) -> Any:
    """The model of worker `rank` of `size`, which holds TENSORS between them."""
    attention = "model.layers.0.self_attn"
    replicas = max(1, size // KEY_HEADS)

    def fused(kind: str) -> Tensor:
        keys = [_shard(f"{attention}.{which}_proj.{kind}", rank // replicas, size // replicas) for which in "kv"]
        return torch.cat([_shard(f"{attention}.q_proj.{kind}", rank, size), *keys])

    def merged() -> Tensor:
        return torch.cat([_shard(f"model.layers.0.mlp.{which}_proj.weight", rank, size) for which in ("gate", "up")])

    def row(name: str) -> Any:
        columns = TENSORS[name].shape[1]
        sizes = {"input_size": columns, "input_size_per_partition": columns // size}
        sizes |= {"output_size": HIDDEN, "output_size_per_partition": HIDDEN}
        return _module(rank, size, {"weight": _shard(name, rank, size, 1)}, **sizes)

    rows = VOCABULARY // size
    padded = torch.cat([_shard("model.embed_tokens.weight", rank, size), torch.full((28, HIDDEN), 7.0)])
    indices = SimpleNamespace(org_vocab_start_index=rank * rows, org_vocab_end_index=(rank + 1) * rows)
    query_key_value = _module(
        rank,
        size,
        {"weight": fused("weight"), "bias": fused("bias")},
        num_heads=HEADS // size,
        num_kv_heads=max(1, KEY_HEADS // size),
        total_num_heads=HEADS,
        total_num_kv_heads=KEY_HEADS,
        head_size=HEAD_SIZE,
        num_kv_head_replicas=replicas,
    )
    layer: Any = nn.Module()
    layer.self_attn, layer.mlp = nn.Module(), nn.Module()
    layer.self_attn.qkv_proj = query_key_value
    layer.self_attn.o_proj = row(f"{attention}.o_proj.weight")
    layer.mlp.gate_up_proj = _module(rank, size, {"weight": merged()}, output_sizes=[INNER, INNER])
    layer.mlp.down_proj = row("model.layers.0.mlp.down_proj.weight")
    found: Any = nn.Module()
    found.packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    found.model = nn.Module()
    found.model.embed_tokens = _module(rank, size, {"weight": padded}, shard_indices=indices, org_vocab_size=VOCABULARY)
    found.model.layers = nn.ModuleList([layer])
    found.model.norm = _module(rank, size, {"weight": TENSORS["model.norm.weight"]})
    return found
