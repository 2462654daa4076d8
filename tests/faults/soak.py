"""Kills a launcher that trains on the CPU, and its rank, at random moments, and holds what they leave to its contract.

    bazel run //tests/faults:soak -- --recipe=sft --kills=50     # the weights of an undisturbed run, to the bit
    bazel run //tests/faults:soak -- --recipe=grpo --kills=20    # the contract of samples; see soak_grpo.py

A tiny model, one rank, a checkpoint in the background every few steps. Moments are drawn from the whole life of both
processes: their start, their steps, their checkpoints, their end. Prints one line a kill, then the figures. Exit code 1
where something is wrong, or a step was lost.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Protocol

from absl import app, flags
from google.protobuf import text_format

from finecut.proto import job_pb2
from finecut.proto.run import RunFolder, events
from finecut.tests.faults import processes, soak_grpo, soak_sft
from finecut.tests.faults.recoveries import LAUNCHER, RANK, Death, describe

_KILLS = flags.DEFINE_integer("kills", 50, "SIGKILLs.", lower_bound=0)
_STEPS = flags.DEFINE_integer("steps", None, "Steps of the run. Unset: the recipe's.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments.")
_VICTIMS = flags.DEFINE_multi_enum("victims", [LAUNCHER, RANK], [LAUNCHER, RANK], "What is killed; drawn each time.")


class Soak(Protocol):
    """A recipe's part, which is a module."""

    STAGE: str
    # Of the run, unless the command line says otherwise.
    STEPS: int
    # Whether there is an undisturbed run to compare with.
    IS_COMPARED: bool
    # A process is killed at most so many seconds after a step, or after its start.
    LONGEST_S: tuple[float, float]

    def write_inputs(self, root: Path) -> None: ...

    def job(self, root: Path, storage: str, steps: int) -> job_pb2.JobConfig: ...

    def problems(self, killed: job_pb2.JobConfig, whole: job_pb2.JobConfig, steps: int) -> list[str]: ...


_RECIPES: dict[str, Soak] = {"sft": soak_sft, "grpo": soak_grpo}
_RECIPE = flags.DEFINE_enum("recipe", "sft", list(_RECIPES), "What is trained.")


def main(arguments: list[str]) -> int:
    soak = _RECIPES[_RECIPE.value]
    steps = _STEPS.value or soak.STEPS
    with tempfile.TemporaryDirectory(prefix="finecut-soak-") as name:
        root = Path(name)
        soak.write_inputs(root)
        whole, job = (soak.job(root, storage, steps) for storage in ("whole", "killed"))
        for storage, one in (("whole", whole), ("killed", job)):
            (root / f"{storage}.textproto").write_text(text_format.MessageToString(one))
        if soak.IS_COMPARED:
            began = time.monotonic()
            _check(_start(root, "whole").wait(), root, "whole")
            print(f"undisturbed run: {time.monotonic() - began:.1f} s", flush=True)
        deaths = _run_with_kills(root, job, soak, random.Random(_SEED.value))
        return _report(soak, whole, job, deaths, steps)


def _start(root: Path, storage: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "finecut.launcher.main", f"--config={root}/{storage}.textproto"]
    log = (root / f"{storage}.log").open("ab")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _run_with_kills(root: Path, job: job_pb2.JobConfig, soak: Soak, draw: random.Random) -> list[Death]:
    """Runs the job until it is done, and kills while kills are left; a launcher that was killed is started again."""
    deaths: list[Death] = []
    launcher = _start(root, "killed")
    while len(deaths) < _KILLS.value:
        before = len(_steps(job, soak.STAGE))
        # Every fifth time something dies before it has done anything, wherever it is by then.
        waits_for_step = draw.random() < 0.8
        while launcher.poll() is None and waits_for_step and len(_steps(job, soak.STAGE)) == before:
            time.sleep(0.1)
        after_step, after_start = soak.LONGEST_S
        time.sleep(draw.uniform(0, after_step if waits_for_step else after_start))
        victim = draw.choice(_VICTIMS.value)
        process = launcher.pid if victim == LAUNCHER else processes.rank_process(_reports(job, soak.STAGE), rank=0)
        if launcher.poll() is not None:
            break
        if process is None:
            continue  # no rank is at work now
        deaths.append(Death(victim, time.time()))
        processes.kill(process)
        print(f"kill {len(deaths)}, of the {victim}, at step {max(_steps(job, soak.STAGE), default=0)}", flush=True)
        if victim == LAUNCHER:
            launcher.wait()
            launcher = _start(root, "killed")
    _check(launcher.wait(), root, "killed")
    return deaths


def _check(code: int, root: Path, storage: str) -> None:
    if code:
        raise SystemExit(f"the run failed with {code}:\n{(root / f'{storage}.log').read_text()[-2000:]}")


def _reports(job: job_pb2.JobConfig, stage: str) -> Path:
    return RunFolder.of(job).stage(stage) / "ranks"


def _steps(job: job_pb2.JobConfig, stage: str) -> list[int]:
    found = events.follow(RunFolder.of(job).events(stage))[0]
    return [event.step.step for event in found if event.WhichOneof("event") == "step"]


def _report(soak: Soak, whole: job_pb2.JobConfig, job: job_pb2.JobConfig, deaths: list[Death], steps: int) -> int:
    done = _steps(job, soak.STAGE)
    happened = events.follow(RunFolder.of(job).events(soak.STAGE))[0]
    resumes = [event for event in happened if event.message.startswith("resumed from")]
    problems = soak.problems(job, whole, steps)
    lost = sorted(set(range(1, steps + 1)) - set(done))
    print(f"{len(deaths)} kills; {'; '.join(problems) or 'nothing is wrong'}")
    print(f"steps lost: {lost or 'none'}; {len(done) - len(set(done))} steps of {steps} done again")
    print(f"{len(resumes)} resumes; checkpoints passed over: {sum('passed over' in e.message for e in happened)}")
    print(describe(deaths, happened))
    return 1 if problems or lost else 0


if __name__ == "__main__":
    app.run(main)
