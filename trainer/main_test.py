"""The binary: exit codes, and errors that a user can act on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from google.protobuf import text_format

from finecut.proto import job_pb2
from finecut.trainer.recipes.testing import tiny_job, write_tiny_inputs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_tiny_inputs(root)
    job = tiny_job(root, "max_steps: 2 batch { global_blocks: 2 }", "lora { rank: 2 }", storage="unused")
    write_job(job, root)
    return root


def write_job(job: job_pb2.JobConfig, folder: Path) -> None:
    (folder / "job.textproto").write_text(text_format.MessageToString(job))


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"BUILD_WORKING_DIRECTORY": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "finecut.trainer.main", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)


def assert_refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


def test_trains_relative_to_where_the_user_stands(root, tmp_path):
    write_job(tiny_job(root, "max_steps: 9", "lora { rank: 2 }"), tmp_path)
    arguments = ["--config=job.textproto", "--stage=sft", "--storage_root=here"]
    result = run(tmp_path, *arguments, "--set=stages.sft.sft.training.max_steps=2")
    assert result.returncode == 0, result.stderr
    assert "stage sft: evaluation_loss" in result.stdout
    assert (tmp_path / "here" / "tiny" / "stages" / "sft" / "artifact" / "adapter_model.safetensors").exists()
    assert (tmp_path / "here" / "tiny" / "stages" / "sft" / "checkpoints" / "step-00000002").exists()


def test_bad_value_names_its_field(root):
    result = run(root, "--config=job.textproto", "--stage=sft", "--set=stages.sft.sft.training.max_steps=many")
    assert_refused(result, "max_steps", "many")


def test_missing_job_file_is_named(root):
    assert_refused(run(root, "--config=nowhere.textproto", "--stage=sft"), "nowhere.textproto")


def test_unknown_stage_lists_those_there_are(root):
    assert_refused(run(root, "--config=job.textproto", "--stage=sfx"), "the job has no stage 'sfx'; use one of sft")


def test_missing_flag_is_invalid_input(root):
    assert_refused(run(root, "--config=job.textproto"), "--stage")


def test_data_that_is_not_prepared_yet_says_which_stage_to_run(root, tmp_path):
    job = tiny_job(root, "max_steps: 2", storage=str(tmp_path))
    job.stages[0].sft.data = "@prepare"
    prepare = job.stages.add(name="prepare").data_prep
    (tmp_path / "talk.jsonl").write_text('{"messages": []}\n')
    prepare.sources.add().paths.append(str(tmp_path / "talk.jsonl"))
    prepare.tokenization.tokenizer = str(root / "model")
    prepare.packing.block_size = 64
    write_job(job, tmp_path)
    result = run(tmp_path, "--config=job.textproto", "--stage=sft")
    assert_refused(result, "stage 'sft' reads '@prepare', which has not finished", "run stage 'prepare' first")


def test_failure_of_training_is_one_sentence(root, tmp_path):
    arguments = ["--config=job.textproto", "--stage=sft", f"--storage_root={tmp_path}"]
    (tmp_path / "tiny" / "stages").mkdir(parents=True)
    (tmp_path / "tiny" / "stages" / "sft").write_text("a file where a folder has to be")
    result = run(root, *arguments)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr


def test_sigterm_leaves_a_checkpoint_and_the_same_command_goes_on(root, tmp_path):
    job = tiny_job(root, "max_steps: 100000 batch { global_blocks: 2 } checkpointing { every_steps: 100000 }")
    write_job(job, tmp_path)
    environment = os.environ | {"BUILD_WORKING_DIRECTORY": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "finecut.trainer.main", "--config=job.textproto", "--stage=sft"]
    storage = f"--storage_root={tmp_path}/runs"
    process = subprocess.Popen([*command, storage], env=environment, stderr=subprocess.PIPE, text=True)
    run_folder = tmp_path / "runs" / "tiny" / "stages" / "sft"
    try:
        deadline = time.monotonic() + 800
        while not (run_folder / "events.jsonl").exists() or '"step"' not in (run_folder / "events.jsonl").read_text():
            assert time.monotonic() < deadline and process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=800)
    finally:
        process.kill()
    assert process.returncode == 75, errors
    assert "stopped on notice (SIGTERM) after step" in errors and "run the same command again" in errors
    checkpoint = next(path.parent for path in (run_folder / "checkpoints").glob("step-*/manifest.json"))
    last_step = int(checkpoint.name.removeprefix("step-"))
    steps = (run_folder / "events.jsonl").read_text().count('"total_steps"')
    assert steps == last_step, "every step that was done is in the checkpoint"
