"""A real job on a real Ray whose launcher is killed in the middle of SFT: resumed, it ends with the same loss."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finecut.launcher import reaper
from finecut.launcher.testing import environment
from finecut.proto.run import RunFolder, artifacts, events
from finecut.trainer.testing import write_tiny_llama

STEPS = 40
JOB = """
name: "tiny"
stages {
  name: "prepare"
  data_prep {
    sources { paths: "chat.jsonl" }
    tokenization { tokenizer: "model" }
    packing { block_size: 128 }
    evaluation { fraction: 0.1 }
  }
}
stages {
  name: "sft"
  sft {
    model { path: "model" lora { rank: 4 dropout: 0.1 } }
    data: "@prepare"
    training {
      max_steps: %d
      batch { global_blocks: 2 }
      optimizer { learning_rate: 0.003 }
      checkpointing { every_steps: 4 }
    }
  }
}
stages {
  name: "export"
  export { model: "@sft" sample_prompts: "What is 7?" sample_max_new_tokens: 4 check_vllm: false }
}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a job, a tiny model and conversations."""
    write_tiny_llama(tmp_path / "model")
    records = [
        [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is the number {n}."}]
        for n in range(150)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": record}) + "\n" for record in records))
    (tmp_path / "job.textproto").write_text(JOB % STEPS)
    return tmp_path


def start(folder: Path, verb: str, root: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "finecut.launcher.main", verb, "--config=job.textproto", f"--storage_root={root}"]
    variables = environment(BUILD_WORKING_DIRECTORY=str(folder))
    return subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(launcher: "subprocess.Popen[str]") -> str:
    try:
        output, _ = launcher.communicate(timeout=1500)
    except subprocess.TimeoutExpired:
        launcher.kill()
        raise
    assert launcher.returncode == 0, output
    return output


def steps_done(run: RunFolder) -> list[int]:
    return [event.step.step for event in events.follow(run.events("sft"))[0] if event.WhichOneof("event") == "step"]


def wait_until(condition: Callable[[], bool], launcher: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 1500
    while not condition():
        assert launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < deadline, "SFT was not reached"
        time.sleep(0.01)


def test_run_killed_in_sft_resumes_to_the_same_loss(folder: Path) -> None:
    finish(start(folder, "run", "whole"))

    killed, run = start(folder, "run", "killed"), RunFolder(folder / "killed" / "tiny")
    wait_until(lambda: any(run.checkpoints("sft").glob("step-*/manifest.json")), killed)
    token = (run.root / "logs" / "ray").readlink().parents[2] / "token"
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=1500)
    assert not (run.artifact("sft") / artifacts.MANIFEST).exists() and max(steps_done(run)) < STEPS
    prepared = (run.artifact("prepare") / artifacts.MANIFEST).stat()

    output = finish(start(folder, "resume", "killed"))
    assert "> What is 7?" in output
    assert reaper.processes_with(token) == []
    assert (run.artifact("prepare") / artifacts.MANIFEST).stat().st_mtime_ns == prepared.st_mtime_ns
    assert steps_done(run).count(1) == 1, "SFT went on from a checkpoint"

    whole = artifacts.read(RunFolder(folder / "whole" / "tiny").artifact("sft")).model
    resumed = artifacts.read(run.artifact("sft")).model
    assert (resumed.steps, whole.steps) == (STEPS, STEPS)
    assert dict(resumed.metrics) == dict(whole.metrics)
    assert whole.metrics["evaluation_loss"] < whole.metrics["first_evaluation_loss"]
