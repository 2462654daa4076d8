"""Kills a launcher that runs SFT on the CPU, and its rank, at random moments, and compares the weights with those of an
undisturbed run.

    bazel run //tests/faults:soak -- --kills=50

A tiny model, one rank, a checkpoint in the background every few steps. Moments are drawn from the whole life of both
processes: their start, their steps, their checkpoints, their end. Prints one line a kill, then the figures. Exit code 1
where a bit differs, or a step was lost.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags
from google.protobuf import text_format

from finecut.proto import job_pb2
from finecut.proto.run import RunFolder, artifacts, events
from finecut.tests.faults import processes
from finecut.tests.faults.recoveries import LAUNCHER, RANK, Death, describe
from finecut.trainer.recipes.testing import tiny_job, write_tiny_inputs

_KILLS = flags.DEFINE_integer("kills", 50, "SIGKILLs.", lower_bound=0)
_STEPS = flags.DEFINE_integer("steps", 1000, "Steps of the run.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments.")
_LONGEST_S = flags.DEFINE_float("longest", 6.0, "A process is killed at most so many seconds after its start or step.")
_VICTIMS = flags.DEFINE_multi_enum("victims", [LAUNCHER, RANK], [LAUNCHER, RANK], "What is killed; drawn each time.")

# All restarts are ours, and none shall wait: the wait doubles with each.
_TRAINING = """
    max_steps: {steps} batch {{ global_blocks: 4 }}
    checkpointing {{ every_steps: 3 asynchronous: true }}
    recovery {{ max_restarts: 1000 backoff {{ }} }}
"""


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="finecut-soak-") as name:
        root = Path(name)
        write_tiny_inputs(root)
        whole, job = (_write_job(root, storage) for storage in ("whole", "killed"))
        began = time.monotonic()
        _check(_start(root, "whole").wait(), root, "whole")
        print(f"undisturbed run: {time.monotonic() - began:.1f} s", flush=True)
        deaths = _run_with_kills(root, job, random.Random(_SEED.value))
        return _report(whole, job, deaths)


def _write_job(root: Path, storage: str) -> job_pb2.JobConfig:
    training = _TRAINING.format(steps=_STEPS.value)
    cluster = "cluster { local { cpu_count: 1 } }"
    job = tiny_job(root, training, "lora { rank: 4 dropout: 0.2 }", storage=storage, cluster=cluster)
    (root / f"{storage}.textproto").write_text(text_format.MessageToString(job))
    return job


def _start(root: Path, storage: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "finecut.launcher.main", f"--config={root}/{storage}.textproto"]
    log = (root / f"{storage}.log").open("ab")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _run_with_kills(root: Path, job: job_pb2.JobConfig, draw: random.Random) -> list[Death]:
    """Runs the job until it is done, and kills while kills are left; a launcher that was killed is started again."""
    deaths: list[Death] = []
    launcher = _start(root, "killed")
    while len(deaths) < _KILLS.value:
        before = len(_steps(job))
        # Every fifth time something dies before it has done anything, wherever it is by then.
        waits_for_step = draw.random() < 0.8
        while launcher.poll() is None and waits_for_step and len(_steps(job)) == before:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, _LONGEST_S.value))
        victim = draw.choice(_VICTIMS.value)
        process = launcher.pid if victim == LAUNCHER else processes.rank_process(_reports(job), rank=0)
        if launcher.poll() is not None:
            break
        if process is None:
            continue  # no rank is at work now
        deaths.append(Death(victim, time.time()))
        processes.kill(process)
        print(f"kill {len(deaths)}, of the {victim}, at step {max(_steps(job), default=0)}", flush=True)
        if victim == LAUNCHER:
            launcher.wait()
            launcher = _start(root, "killed")
    _check(launcher.wait(), root, "killed")
    return deaths


def _check(code: int, root: Path, storage: str) -> None:
    if code:
        raise SystemExit(f"the run failed with {code}:\n{(root / f'{storage}.log').read_text()[-2000:]}")


def _reports(job: job_pb2.JobConfig) -> Path:
    return RunFolder.of(job).stage("sft") / "ranks"


def _steps(job: job_pb2.JobConfig) -> list[int]:
    found = events.follow(RunFolder.of(job).events("sft"))[0]
    return [event.step.step for event in found if event.WhichOneof("event") == "step"]


def _report(whole: job_pb2.JobConfig, job: job_pb2.JobConfig, deaths: list[Death]) -> int:
    expected, found = (artifacts.read(RunFolder.of(each).artifact("sft"), verify=True) for each in (whole, job))
    weights = [[file.sha256 for file in each.files if file.path.endswith(".safetensors")] for each in (expected, found)]
    done = _steps(job)
    happened = events.follow(RunFolder.of(job).events("sft"))[0]
    resumes = [event for event in happened if event.message.startswith("resumed from")]
    is_same = weights[0] == weights[1] and dict(expected.model.metrics) == dict(found.model.metrics)
    lost = sorted(set(range(1, _STEPS.value + 1)) - set(done))
    print(f"{len(deaths)} kills; weights and metrics: {'bit-identical' if is_same else 'DIFFERENT'}")
    print(f"steps lost: {lost or 'none'}; {len(done) - len(set(done))} steps of {_STEPS.value} done again")
    print(f"{len(resumes)} resumes; checkpoints passed over: {sum('passed over' in e.message for e in happened)}")
    print(describe(deaths, happened))
    return 0 if is_same and not lost else 1


if __name__ == "__main__":
    app.run(main)
