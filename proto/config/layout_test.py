"""Ranks, batch and model that do not fit together are told all at once, with what would."""

import dataclasses
import json
from pathlib import Path

import pytest

from finecut.proto.config.layout import Layout, ModelSizes, check

EIGHT = Layout(world_size=8, shard_size=None, replicate_size=1, tensor_parallel_size=1, global_blocks=8, micro_blocks=1)
LLAMA_8B = ModelSizes(num_heads=32, num_key_heads=8, intermediate_size=14_336, vocabulary_size=128_256)


def problems(model: ModelSizes | None = None, **fields: int | None) -> dict[str, str]:
    found = check(dataclasses.replace(EIGHT, **fields), model, "t")
    return {problem.path: problem.message for problem in found}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"shard_size": 8},
        {"replicate_size": 2},
        {"replicate_size": 2, "shard_size": 2, "tensor_parallel_size": 2},
        {"tensor_parallel_size": 8, "global_blocks": 1},
        {"world_size": None, "tensor_parallel_size": 4, "global_blocks": 3},
    ],
)
def test_accepts_what_divides(fields):
    assert problems(LLAMA_8B, **fields) == {}


def test_a_number_of_ranks_beyond_all_reason_is_refused_at_once():
    (message,) = problems(world_size=2**62 + 1, tensor_parallel_size=2, global_blocks=2**62).values()
    assert message.endswith("does not divide the 4611686018427387905 ranks; use 1 or 5")


def test_refuses_a_mesh_that_is_not_the_number_of_ranks():
    assert problems(shard_size=4) == {
        "t.parallelism.shard_size": "4 is not the number of ranks, 8; leave it unset or use 8"
    }
    assert problems(shard_size=4, tensor_parallel_size=4) == {
        "t.parallelism.shard_size": "4 x 4 = 16 is not the number of ranks, 8; leave it unset or use 2"
    }
    assert problems(tensor_parallel_size=3)["t.parallelism.tensor_parallel_size"] == (
        "tensor_parallel_size 3 does not divide the 8 ranks; use 1, 2, 4 or 8"
    )
    assert problems(replicate_size=2, tensor_parallel_size=8)["t.parallelism.replicate_size"] == (
        "replicate_size 2 x tensor_parallel_size 8 = 16 does not divide the 8 ranks;"
        " use sizes whose product is 1, 2, 4 or 8"
    )


def test_refuses_a_degree_that_does_not_divide_the_model_and_says_which_do():
    found = problems(LLAMA_8B, world_size=None, tensor_parallel_size=3)
    assert found["t.parallelism.tensor_parallel_size"] == (
        "3 does not divide the model's 32 heads and 8 key heads, nor is it a multiple of them and intermediate size of"
        " 14,336; use 1, 2, 4, 8, 16 or 32"
    )
    smol = ModelSizes(num_heads=9, num_key_heads=3, intermediate_size=1536, vocabulary_size=49_152)
    found = problems(smol, world_size=6, tensor_parallel_size=2, global_blocks=6)
    assert found["t.parallelism.tensor_parallel_size"] == (
        "2 does not divide the model's 9 heads and 3 key heads, nor is it a multiple of them; use 1 or 3"
    )


def test_key_heads_may_be_fewer_than_ranks():
    one_key_head = ModelSizes(num_heads=4, num_key_heads=1, intermediate_size=64, vocabulary_size=500)
    assert problems(one_key_head, world_size=4, tensor_parallel_size=4) == {}


def test_refuses_a_split_of_experts_that_is_not_even():
    with_experts = dataclasses.replace(LLAMA_8B, expert_size=12)
    assert problems(with_experts, tensor_parallel_size=2) == {}
    found = problems(with_experts, tensor_parallel_size=8)["t.parallelism.tensor_parallel_size"]
    assert found.startswith("8 does not divide the model's expert size of 12; use 1, 2")


def test_refuses_a_batch_that_does_not_divide_and_names_the_nearest_that_does():
    assert problems(world_size=3, micro_blocks=2) == {
        "t.batch.global_blocks": "8 is not a multiple of 6 (micro_blocks 2 on each of 3 data-parallel ranks); use 6"
    }
    # Ranks of one tensor-parallel group take the same blocks.
    assert problems(tensor_parallel_size=4, global_blocks=3)["t.batch.global_blocks"] == (
        "3 is not a multiple of 2 (micro_blocks 1 on each of 2 data-parallel ranks); use 4"
    )


def test_tells_everything_at_once():
    assert problems(LLAMA_8B, world_size=6, shard_size=4, tensor_parallel_size=3, global_blocks=5).keys() == {
        "t.parallelism.shard_size",
        "t.parallelism.tensor_parallel_size",
        "t.batch.global_blocks",
    }


def test_sizes_come_from_the_models_folder(tmp_path: Path):
    assert ModelSizes.from_folder(str(tmp_path)) is None
    sizes = {"num_attention_heads": 4, "intermediate_size": 8, "vocab_size": 500}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    assert ModelSizes.from_folder(str(tmp_path)) == ModelSizes(4, 4, 8, 500)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": sizes | {"num_key_value_heads": 2}}))
    assert ModelSizes.from_folder(str(tmp_path)) == ModelSizes(4, 2, 8, 500)
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"num_experts": 8, "moe_intermediate_size": 32}))
    assert ModelSizes.from_folder(str(tmp_path)) == ModelSizes(4, 4, 8, 500, expert_size=32)
