"""Fine-tuning records each example's loss, once a step, and trains to the same bits."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from finecut.dataprep.shards import SplitReader
from finecut.proto import job_pb2
from finecut.proto.run import RunFolder
from finecut.trainer.recipes.testing import run_ranks, tiny_job, write_tiny_inputs
from finecut.trainer.stage import run_stage

SIX_STEPS = "max_steps: 6 batch { global_blocks: 4 micro_blocks: 2 } checkpointing { every_steps: 3 keep_last: 9 }"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_tiny_inputs(root)
    return root


def recording_job(root: Path, storage: Path, records: bool = True) -> job_pb2.JobConfig:
    job = tiny_job(root, SIX_STEPS, storage=str(storage))
    job.stages[0].sft.record_example_losses = records
    return job


def rows(job: job_pb2.JobConfig) -> list[dict]:
    folder = RunFolder.of(job).stage("sft") / "example-losses"
    found = pq.read_table(folder).to_pylist()
    return sorted(found, key=lambda row: (row["step"], row["example_id"], row["tokens"], row["loss"]))


def weights(job: job_pb2.JobConfig) -> bytes:
    return (RunFolder.of(job).artifact("sft") / "model.safetensors").read_bytes()


def train_as_rank(job: job_pb2.JobConfig) -> None:
    run_stage(job, "sft")


def test_rows_are_each_steps_loss_and_no_step_stands_twice(root, tmp_path):
    plain = recording_job(root, tmp_path / "plain", records=False)
    run_stage(plain, "sft")
    job = recording_job(root, tmp_path / "recorded")
    artifact = run_stage(job, "sft")
    assert weights(job) == weights(plain)
    whole = rows(job)
    assert {row["step"] for row in whole} == set(range(1, 7))
    last = [row for row in whole if row["step"] == 6]
    mean = sum(row["loss"] * row["tokens"] for row in last) / sum(row["tokens"] for row in last)
    assert mean == pytest.approx(artifact.model.metrics["loss"], rel=1e-5)
    reader = SplitReader(root / "data", "train")
    blocks = reader.read(range(len(reader)))
    assert {row["example_id"] for row in whole} == set(blocks.example_id_ND.ravel().tolist()) - {0}
    assert sum(row["tokens"] for row in whole if row["step"] <= 3) == blocks.loss_mask_NL.sum()  # an epoch

    # The checkpoint of step 6 is lost: what it recorded is done again, not added to.
    run = RunFolder.of(job)
    shutil.rmtree(run.artifact("sft"))
    shutil.rmtree(run.checkpoints("sft") / "step-00000006")
    run_stage(job, "sft")
    assert rows(job) == whole


def test_two_ranks_record_what_one_does(root, tmp_path):
    one, two = recording_job(root, tmp_path / "one"), recording_job(root, tmp_path / "two")
    run_stage(one, "sft")
    run_ranks(2, train_as_rank, two)
    expected, found = rows(one), rows(two)
    assert len(found) == len(expected)
    first = [[row for row in part if row["step"] == 1] for part in (expected, found)]
    for one_row, other in zip(*first, strict=True):
        assert other["tokens"] == one_row["tokens"] and other["loss"] == pytest.approx(one_row["loss"], rel=1e-4)
