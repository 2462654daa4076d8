"""Kills an SFT run on the CPU at random moments, again and again, and compares its weights with an undisturbed run's.

    bazel run //tests/soak -- --kills=50

A tiny model, one rank, a checkpoint in the background every few steps. Moments are drawn from the whole life of the
process: its start, its steps, its checkpoints, its end. Prints one line a kill, then the figures. Exit code 1 where a
bit differs, or a step was lost.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags
from google.protobuf import text_format

from finecut.proto import job_pb2
from finecut.proto.run import RunFolder, artifacts, events
from finecut.trainer.recipes.testing import tiny_job, write_tiny_inputs

_KILLS = flags.DEFINE_integer("kills", 50, "SIGKILLs.", lower_bound=0)
_STEPS = flags.DEFINE_integer("steps", 1000, "Steps of the run.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments.")
_LONGEST_S = flags.DEFINE_float("longest", 6.0, "A process is killed at most so many seconds after its start or step.")

_TRAINING = """
    max_steps: {steps} batch {{ global_blocks: 4 }}
    checkpointing {{ every_steps: 3 asynchronous: true }}
"""


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="finecut-soak-") as name:
        root = Path(name)
        write_tiny_inputs(root)
        whole, job = (_write_job(root, storage) for storage in ("whole", "killed"))
        began = time.monotonic()
        _start(root, "whole").wait()
        print(f"undisturbed run: {time.monotonic() - began:.1f} s", flush=True)
        times = _run_with_kills(root, job, random.Random(_SEED.value))
        return _report(whole, job, times)


def _write_job(root: Path, storage: str) -> job_pb2.JobConfig:
    training = _TRAINING.format(steps=_STEPS.value)
    job = tiny_job(root, training, "lora { rank: 4 dropout: 0.2 }", storage=storage)
    (root / f"{storage}.textproto").write_text(text_format.MessageToString(job))
    return job


def _start(root: Path, storage: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "finecut.trainer.main", f"--config={root}/{storage}.textproto", "--stage=sft"]
    log = (root / f"{storage}.log").open("ab")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _run_with_kills(root: Path, job: job_pb2.JobConfig, draw: random.Random) -> list[float]:
    """Starts the run until it is done, killing it while kills are left. Returns seconds from starts to first steps."""
    times: list[float] = []
    kills = 0
    while True:
        before, began = len(_steps(job)), time.monotonic()
        process = _start(root, "killed")
        wait_s = draw.uniform(0, _LONGEST_S.value)
        # Every fifth process dies before it has done anything, wherever it is by then.
        waits_for_step = draw.random() < 0.8
        while process.poll() is None and waits_for_step and len(_steps(job)) == before:
            time.sleep(0.02)
        if waits_for_step and process.poll() is None:
            times.append(time.monotonic() - began)
        if kills < _KILLS.value:
            try:
                process.wait(wait_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
        code = process.wait()
        if code != -signal.SIGKILL:
            if code:
                raise SystemExit(f"the run failed with {code}:\n{(root / 'killed.log').read_text()[-2000:]}")
            print(f"done after {kills} kills", flush=True)
            return times
        print(f"kill {kills} at step {max(_steps(job), default=0)}", flush=True)


def _steps(job: job_pb2.JobConfig) -> list[int]:
    found = events.follow(RunFolder.of(job).events("sft"))[0]
    return [event.step.step for event in found if event.WhichOneof("event") == "step"]


def _report(whole: job_pb2.JobConfig, job: job_pb2.JobConfig, times: list[float]) -> int:
    expected, found = (artifacts.read(RunFolder.of(each).artifact("sft"), verify=True) for each in (whole, job))
    weights = [[file.sha256 for file in each.files if file.path.endswith(".safetensors")] for each in (expected, found)]
    done = _steps(job)
    messages = [event.message for event in events.follow(RunFolder.of(job).events("sft"))[0]]
    resumes = [message for message in messages if message.startswith("resumed from")]
    is_same = weights[0] == weights[1] and dict(expected.model.metrics) == dict(found.model.metrics)
    lost = sorted(set(range(1, _STEPS.value + 1)) - set(done))
    print(f"weights and metrics: {'bit-identical' if is_same else 'DIFFERENT'}; steps lost: {lost or 'none'}")
    print(f"{len(resumes)} resumes; {len(done) - len(set(done))} steps of {_STEPS.value} done again")
    print(f"torn checkpoints passed over: {sum('passed over' in message for message in messages)}")
    if times:
        quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
        print(f"from the start of a process to its first step: median {quartiles[1]:.1f} s, {max(times):.1f} s at most")
    return 0 if is_same and not lost else 1


if __name__ == "__main__":
    app.run(main)
