"""AUTO chooses alone: what it chooses cannot be set beside it."""

import pytest
from google.protobuf import text_format

from finecut.proto import job_pb2
from finecut.proto.config import automatic

DEFAULTS = "parallelism { replicate_size: 1 tensor_parallel_size: 1 } batch { micro_blocks: 1 }"


def problems(*trainings: str, work: str = "sft") -> dict[str, str]:
    stage = job_pb2.Stage(name="s")
    for training in (DEFAULTS, *trainings):
        stage.MergeFrom(text_format.Parse(f"{work} {{ training {{ {training} }} }}", job_pb2.Stage()))
    return {problem.path: problem.message for problem in automatic.check(stage, f"stages[0].{work}")}


def test_alone_it_is_fine() -> None:
    assert problems("parallelism { mode: AUTO }") == {}
    assert problems("parallelism { mode: MANUAL tensor_parallel_size: 2 } activation_checkpointing: FULL") == {}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("parallelism { tensor_parallel_size: 2 }", "parallelism.tensor_parallel_size"),
        ("parallelism { shard_size: 4 }", "parallelism.shard_size"),
        ("parallelism { offload_optimizer: true }", "parallelism.offload_optimizer"),
        ("batch { micro_blocks: 2 }", "batch.micro_blocks"),
        ("activation_checkpointing: FULL", "activation_checkpointing"),
    ],
)
def test_what_it_chooses_cannot_be_set_beside_it(text: str, field: str) -> None:
    found = problems(text, "parallelism { mode: AUTO }")
    assert list(found) == [f"stages[0].sft.training.{field}"]


def test_recipes_that_sample_refuse_it() -> None:
    assert "MANUAL" in problems("parallelism { mode: AUTO }", work="grpo")["stages[0].grpo.training.parallelism.mode"]
