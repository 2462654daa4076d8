"""Kills the training rank of a job again and again, and tells how long it takes to the next step, by phases.

    bazel run //tests/faults:restart -- --config=examples/quickstart/job.textproto --kills=3

The job runs in a folder of its own, stops after the last restart, and leaves nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from finecut.proto import service_pb2
from finecut.proto.config import load_job
from finecut.proto.run import RunFolder, events
from finecut.tests.faults import processes
from finecut.tests.faults.recoveries import RANK, Death, describe

_CONFIG = flags.DEFINE_string("config", None, "A job file.", required=True)
_STAGE = flags.DEFINE_string("stage", "sft", "The stage whose rank is killed.")
_KILLS = flags.DEFINE_integer("kills", 3, "SIGKILLs.", lower_bound=1)

# A checkpoint after each step, so that none is done twice; all restarts are ours.
_FIELDS = ("max_steps=100000", "checkpointing.every_steps=1", "recovery.max_restarts=1000")


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="finecut-restart-") as root:
        fields = [f"stages.{_STAGE.value}.{_STAGE.value}.training.{field}" for field in _FIELDS]
        job = load_job(Path(_CONFIG.value), overrides=fields, storage_root=root)
        folder = RunFolder.of(job)
        command = [sys.executable, "-m", "finecut.launcher.main", f"--config={_CONFIG.value}", f"--storage_root={root}"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        launcher = subprocess.Popen([*command, *(f"--set={field}" for field in fields)], env=environment)
        try:
            deaths = [_kill_after_a_step(folder, launcher) for _ in range(_KILLS.value)]
            _wait_for_steps(1, folder, launcher)
        finally:
            launcher.send_signal(signal.SIGTERM)
            launcher.wait()
        print(describe(deaths, _happened(folder)))


def _kill_after_a_step(folder: RunFolder, launcher: subprocess.Popen[bytes]) -> Death:
    _wait_for_steps(2, folder, launcher)  # the first one's checkpoint is whole by then
    process = processes.rank_process(folder.ranks(_STAGE.value), rank=0)
    if process is None:
        raise SystemExit("the rank has ended")
    death = Death(RANK, time.time())
    processes.kill(process)
    return death


def _wait_for_steps(count: int, folder: RunFolder, launcher: subprocess.Popen[bytes]) -> None:
    before = _count_steps(folder)
    while _count_steps(folder) < before + count:
        if launcher.poll() is not None:
            raise SystemExit(f"the launcher ended with exit code {launcher.returncode}")
        time.sleep(0.05)


def _count_steps(folder: RunFolder) -> int:
    return sum(event.WhichOneof("event") == "step" for event in _happened(folder))


def _happened(folder: RunFolder) -> list[service_pb2.JobEvent]:
    return events.follow(folder.events(_STAGE.value))[0]


if __name__ == "__main__":
    app.run(main)
