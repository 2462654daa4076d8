"""Ranks without a driver: a group that stands still, or loses a rank, ends by itself within seconds and says why."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finecut.trainer.liveness import notice, reports

# One rank: goes three steps together with the other one, then does what the scenario says where it is rank 1.
RANK = """
import os, signal, sys, time
from pathlib import Path
from finecut.trainer.liveness import liveness
from finecut.trainer.parallel import process_group
from finecut.trainer.parallel.leaving import leave

scenario, folder = sys.argv[1:]

def odd_one():
    if scenario == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif scenario == "loop":
        while True:
            pass
    elif scenario == "skip":
        time.sleep(3600)
    elif scenario == "raise":
        raise RuntimeError("the disk is gone")

try:
    with process_group.connect() as devices, liveness.watching(Path(folder), devices, 6.0) as alive:
        for step in range(1, 10_000):
            alive.at(step, "train")
            if step == 3 and devices.rank == 1:
                time.sleep(1.5)  # so that it has reported
                odd_one()
            devices.sum(1.0)
            if reason := alive.should_stop(devices):
                print(f"stopped after step {step}: {reason}")
                leave(75)
            if scenario == "go on":
                time.sleep(0.02)
except Exception as error:
    print(error, file=sys.stderr)
    time.sleep(60 if scenario == "raise" and devices.rank == 1 else 0)  # as one that does not let go of its sockets
    leave(1)
"""


def start(folder: Path, scenario: str) -> list[subprocess.Popen[str]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, scenario, str(folder)],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def wait_for_step(folder: Path, step: int, ranks: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 800
    while any(report.step < step for report in reports.read(folder, 2).values()) or len(reports.read(folder, 2)) < 2:
        assert time.monotonic() < deadline, "the step was not reached"
        assert all(rank.poll() is None for rank in ranks), ranks[0].communicate()
        time.sleep(0.05)


def end(ranks: list[subprocess.Popen[str]]) -> None:
    for rank in ranks:
        rank.kill()
        rank.communicate()


@pytest.mark.parametrize(
    "scenario, expected",
    [
        ("stop", "rank 1 froze in step 3, phase train: its process is stopped (SIGSTOP); rank 0 waits for it in"),
        ("loop", "rank 1 stands in step 3, phase train; rank 0 waits for it in the collective all_reduce of step 3"),
        ("skip", "rank 1 stands in step 3, phase train; rank 0 waits for it in the collective all_reduce of step 3"),
    ],
)
def test_hanging_rank_is_named_and_the_group_ends(tmp_path, scenario, expected):
    ranks = start(tmp_path, scenario)
    try:
        wait_for_step(tmp_path, 3, ranks)
        began = time.monotonic()
        _, errors = ranks[0].communicate(timeout=800)
        assert ranks[0].returncode == 1
        assert "no rank went forward for 6 s" in errors and expected in errors, errors
        assert time.monotonic() - began < 60
        if scenario != "stop":
            assert "odd_one" in reports.stacks_of(tmp_path, 1).read_text()
        assert "all_reduce" in reports.stacks_of(tmp_path, 0).read_text()
    finally:
        end(ranks)


def test_peers_of_a_rank_that_fails_end_within_seconds(tmp_path):
    ranks = start(tmp_path, "raise")
    try:
        _, errors = ranks[0].communicate(timeout=800)
        assert ranks[0].returncode == 1
        assert "RuntimeError: the disk is gone" in errors, errors
        assert ranks[1].poll() is None, "it still holds its connections, which would tell the other one"
    finally:
        end(ranks)


@pytest.mark.parametrize("how", ["SIGTERM", "notice"])
def test_all_ranks_stop_after_the_same_step_on_notice(tmp_path, how):
    ranks = start(tmp_path, "go on")
    try:
        wait_for_step(tmp_path, 5, ranks)
        if how == "SIGTERM":
            ranks[1].send_signal(signal.SIGTERM)
        else:
            notice.give(tmp_path, "a node is going away")
        outputs = [rank.communicate(timeout=800)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [notice.EXIT_PREEMPTED] * 2
        steps = {output.split(":")[0] for output in outputs}
        assert len(steps) == 1 and steps.pop().startswith("stopped after step")
        assert ("SIGTERM" if how == "SIGTERM" else "a node is going away") in "".join(outputs)
    finally:
        end(ranks)
