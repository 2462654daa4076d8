"""Fine-tuning records each example's loss, once a step, and trains to the same bits."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from google.protobuf import text_format

from finecut.dataprep.shards import SplitReader
from finecut.dataprep.stage import run_stage as prepare
from finecut.proto import job_pb2
from finecut.proto.config import resolve
from finecut.proto.run import RunFolder
from finecut.trainer.metrics.example_losses import ExampleLosses
from finecut.trainer.parallel import process_group
from finecut.trainer.recipes.testing import run_ranks, tiny_job, write_tiny_inputs
from finecut.trainer.stage import run_stage
from finecut.trainer.testing import write_tiny_llama

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


@pytest.mark.parametrize("mode", ["OFFLINE", "ON_THE_FLY"])
def test_every_source_has_its_rows_and_its_loss(tmp_path, mode):
    """Of two sources the one that is harder to learn shows, in the rows and among the metrics."""
    model = write_tiny_llama(tmp_path / "model")
    for name, word in (("easy", "yes"), ("hard", None)):
        random = np.random.default_rng(0)
        texts = [" ".join([word or str(random.integers(1e6))] * 6) for _ in range(24)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources = " ".join(
        f'sources {{ name: "{name}" paths: "{tmp_path}/{name}.jsonl" text {{}} }}' for name in ("easy", "hard")
    )
    text = f"""
        name: "sources" storage {{ root: "{tmp_path}/runs" }}
        stages {{ name: "prepare" data_prep {{
          {sources} tokenization {{ tokenizer: "{model}" }} packing {{ block_size: 128 mode: {mode} }} }} }}
        stages {{ name: "sft" sft {{ model {{ path: "{model}" }} data: "@prepare" record_example_losses: true
          training {{ {SIX_STEPS} schedule {{ warmup_steps: 0 }} optimizer {{ learning_rate: 1e-2 }} }} }} }}
    """
    job = resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=tmp_path)
    prepare(job, "prepare")
    metrics = run_stage(job, "sft").model.metrics
    last = [row for row in rows(job) if row["step"] == 6]
    for name in ("easy", "hard"):
        own = [row for row in last if row["source"] == name]
        mean = sum(row["loss"] * row["tokens"] for row in own) / sum(row["tokens"] for row in own)
        assert metrics[f"loss/{name}"] == pytest.approx(mean, rel=1e-4)
    assert metrics["loss/easy"] < metrics["loss/hard"]


def test_two_ranks_record_what_one_does(root, tmp_path):
    one, two = recording_job(root, tmp_path / "one"), recording_job(root, tmp_path / "two")
    run_stage(one, "sft")
    run_ranks(2, train_as_rank, two)
    expected, found = rows(one), rows(two)
    assert len(found) == len(expected)
    first = [[row for row in part if row["step"] == 1] for part in (expected, found)]
    for one_row, other in zip(*first, strict=True):
        assert other["tokens"] == one_row["tokens"] and other["loss"] == pytest.approx(one_row["loss"], rel=1e-4)


def test_rows_that_a_full_disk_refuses_wait_for_the_next_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    one: np.ndarray = np.ones(1, np.int64)
    with process_group.connect() as devices:
        losses = ExampleLosses(tmp_path, 0, devices)
        for step in (1, 2, 3):
            losses.add(step, one, one.astype(np.float32), one, np.array(["a"], object))
            with monkeypatch.context() as patch:
                if step < 3:
                    patch.setattr(pq, "write_table", full)
                losses.flush(step)
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000001.parquet"]
    assert pq.read_table(tmp_path)["step"].to_pylist() == [1, 2, 3]
    assert capfd.readouterr().err.count("cannot be written ([Errno 28] No space left") == 1
