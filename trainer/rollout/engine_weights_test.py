"""Fused and split matrices are cut into the tensors that the trainer knows, whatever the tensor-parallel size.

The modules stand in for vLLM's, with the fields that its layers have; families_test holds the real ones to the
trainer's weights on one rank.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from finecut.trainer.rollout import engine_weights
from finecut.trainer.rollout.checksums import combine, tensor_checksum

HIDDEN, INNER, HEADS, KEY_HEADS, HEAD_SIZE, VOCABULARY = 64, 160, 8, 2, 16, 100


def whole(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


TENSORS = {
    "model.embed_tokens.weight": whole(VOCABULARY, HIDDEN),
    "model.layers.0.self_attn.q_proj.weight": whole(HEADS * HEAD_SIZE, HIDDEN),
    "model.layers.0.self_attn.q_proj.bias": whole(HEADS * HEAD_SIZE),
    "model.layers.0.self_attn.k_proj.weight": whole(KEY_HEADS * HEAD_SIZE, HIDDEN),
    "model.layers.0.self_attn.k_proj.bias": whole(KEY_HEADS * HEAD_SIZE),
    "model.layers.0.self_attn.v_proj.weight": whole(KEY_HEADS * HEAD_SIZE, HIDDEN) + 1,
    "model.layers.0.self_attn.v_proj.bias": whole(KEY_HEADS * HEAD_SIZE) + 1,
    "model.layers.0.self_attn.o_proj.weight": whole(HIDDEN, HEADS * HEAD_SIZE) + 2,
    "model.layers.0.mlp.gate_proj.weight": whole(INNER, HIDDEN),
    "model.layers.0.mlp.up_proj.weight": whole(INNER, HIDDEN) + 1,
    "model.layers.0.mlp.down_proj.weight": whole(HIDDEN, INNER) + 2,
    "model.norm.weight": whole(HIDDEN),
}


def module(rank, size, parameters, **fields):
    made = nn.Module()
    for name, value in ({"tp_rank": rank, "tp_size": size} | fields).items():
        setattr(made, name, value)
    for name, value in parameters.items():
        made.register_parameter(name, nn.Parameter(value.clone()))
    return made


def shard(name, rank, size, dimension=0):
    return TENSORS[name].chunk(size, dimension)[rank]


def model_of(rank, size):
    """What one worker of `size` holds."""
    attention = "model.layers.0.self_attn"
    replicas = max(1, size // KEY_HEADS)

    def fused(kind):
        keys = [shard(f"{attention}.{which}_proj.{kind}", rank // replicas, size // replicas) for which in "kv"]
        return torch.cat([shard(f"{attention}.q_proj.{kind}", rank, size), *keys])

    def merged():
        return torch.cat([shard(f"model.layers.0.mlp.{which}_proj.weight", rank, size) for which in ("gate", "up")])

    def row(name):
        columns = TENSORS[name].shape[1]
        sizes = {"input_size": columns, "input_size_per_partition": columns // size}
        sizes |= {"output_size": HIDDEN, "output_size_per_partition": HIDDEN}
        return module(rank, size, {"weight": shard(name, rank, size, 1)}, **sizes)

    rows = VOCABULARY // size
    padded = torch.cat([shard("model.embed_tokens.weight", rank, size), torch.full((28, HIDDEN), 7.0)])
    indices = SimpleNamespace(org_vocab_start_index=rank * rows, org_vocab_end_index=(rank + 1) * rows)
    query_key_value = module(
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
    layer = nn.Module()
    layer.self_attn, layer.mlp = nn.Module(), nn.Module()
    layer.self_attn.qkv_proj = query_key_value
    layer.self_attn.o_proj = row(f"{attention}.o_proj.weight")
    layer.mlp.gate_up_proj = module(rank, size, {"weight": merged()}, output_sizes=[INNER, INNER])
    layer.mlp.down_proj = row("model.layers.0.mlp.down_proj.weight")
    found = nn.Module()
    found.packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    found.model = nn.Module()
    found.model.embed_tokens = module(rank, size, {"weight": padded}, shard_indices=indices, org_vocab_size=VOCABULARY)
    found.model.layers = nn.ModuleList([layer])
    found.model.norm = module(rank, size, {"weight": TENSORS["model.norm.weight"]})
    return found


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_workers_together_hold_the_trainers_tensors(size, monkeypatch):
    found = []
    for rank in range(size):
        monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_rank", lambda rank=rank: rank)
        found.append(engine_weights.weight_checksums(model_of(rank, size)))
    assert combine(found) == {name: tensor_checksum(tensor) for name, tensor in TENSORS.items()}


def test_a_layout_that_is_not_known_keeps_its_name(monkeypatch):
    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_rank", lambda: 0)
    model = nn.Module()
    model.packed_modules_mapping = {"strange_proj": ["a", "b"]}
    model.strange_proj = nn.Linear(4, 4, bias=False)
    assert set(engine_weights.weight_checksums(model)) == {"strange_proj.weight"}
