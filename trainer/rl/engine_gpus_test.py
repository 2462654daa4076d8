"""GPUs that ranks leave to engines."""

import pytest
from google.protobuf import text_format

from finecut.proto import job_pb2
from finecut.proto.config import UserError
from finecut.trainer.rl.engine_gpus import reserved_for_engines


def stage(rollout: str, kind: str = "grpo") -> job_pb2.Stage:
    text = f'name: "train" {kind} {{ rollout {{ tensor_parallel_size: 1 {rollout} }} }}'
    return text_format.Parse(text, job_pb2.Stage())


def test_engines_that_take_turns_have_none_of_their_own() -> None:
    assert reserved_for_engines(stage("placement: COLOCATED"), 8) == 0
    assert reserved_for_engines(job_pb2.Stage(name="sft", sft={}), 8) == 0
    assert reserved_for_engines(stage("placement: SPLIT"), 0) == 0


@pytest.mark.parametrize(
    ("rollout", "gpus", "left"),
    [
        ("", 8, 4),
        ("engine_count: 2", 8, 2),
        ("engine_count: 1", 2, 1),
        ("", 3, 1),
        ("engine_count: 1 allocation { max_engine_count: 3 }", 8, 3),
    ],
)
def test_engines_of_their_own_have_half_of_the_gpus_or_as_many_as_said(rollout: str, gpus: int, left: int) -> None:
    assert reserved_for_engines(stage(f"placement: SPLIT {rollout}"), gpus) == left
    assert reserved_for_engines(stage(f"placement: SPLIT {rollout}", "distill"), gpus) == left


def test_training_must_have_a_gpu_left() -> None:
    with pytest.raises(UserError, match="2 engines of 1 GPUs leave none of the 2 GPUs to training"):
        reserved_for_engines(stage("placement: SPLIT engine_count: 2"), 2)
