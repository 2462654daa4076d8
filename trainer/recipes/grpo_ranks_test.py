"""GRPO on two ranks, which share answers or split matrices, computes what one rank does."""

import json
from pathlib import Path

import pytest

from finecut.proto import job_pb2
from finecut.proto.run import RunFolder
from finecut.trainer.recipes.testing import run_ranks
from finecut.trainer.rl import testing
from finecut.trainer.stage import run_stage

pytest_plugins = ["finecut.trainer.rl.testing_fixtures"]
KEPT = ("reward", "loss", "gradient_norm", "entropy", "kl", "answer_tokens")


def _run(job: bytes) -> None:
    run_stage(job_pb2.JobConfig.FromString(job), "train")


def values(root: Path, world_size: int, storage: str, training: str = "") -> list[list[float]]:
    """What two steps measured."""
    fields = 'rewards { regular_expression: "e" } group_size: 4 kl { coefficient: 0.1 place: IN_LOSS }'
    job = testing.tiny_job(root, "grpo", fields, f"max_steps: 2 {training}", storage=storage)
    run_ranks(world_size, _run, job.SerializeToString())
    lines = RunFolder.of(job).events("train").read_text(encoding="utf-8").splitlines()
    found = [event["step"]["values"] for line in lines if "step" in (event := json.loads(line))]
    return [[one[name] for name in KEPT] for one in found]


@pytest.fixture(scope="module")
def alone(root: Path) -> list[list[float]]:
    return values(root, 1, "alone")


@pytest.mark.parametrize(
    ("storage", "training"), [("sharded", ""), ("split", "parallelism { tensor_parallel_size: 2 }")]
)
def test_two_ranks_measure_what_one_does(root: Path, alone: list[list[float]], storage: str, training: str) -> None:
    for ours, theirs in zip(values(root, 2, storage, training), alone, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-4)
