"""Which rank is named, for each way in which a group can stand still."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finecut.trainer.liveness import diagnosis, reports
from finecut.trainer.liveness.reports import Report

WAITING = Report(0, 1, "elsewhere", step=7, phase="train", moves=9, collective="all_reduce")


def group(**changes_of_rank_1: object) -> dict[int, Report]:
    """Three ranks that wait in a collective, but for what is said of rank 1."""
    ranks = {rank: dataclasses.replace(WAITING, rank=rank) for rank in range(3)}
    ranks[1] = dataclasses.replace(ranks[1], **changes_of_rank_1)
    return ranks


def test_rank_outside_the_collective_is_named_with_its_place():
    found = group(collective="", place="trainer/data/plan.py:57 in take")
    assert diagnosis.blame(found, set()) == (
        "rank 1 stands in step 7, phase train at trainer/data/plan.py:57 in take;"
        " ranks 0, 2 wait for it in the collective all_reduce of step 7"
    )


def test_rank_that_is_behind_is_named():
    found = group(step=6, moves=8, collective="barrier")
    assert diagnosis.blame(found, set()).startswith("rank 1 waits in barrier in step 6, phase train; ranks 0, 2 wait")


def test_rank_in_another_collective_is_named():
    assert diagnosis.blame(group(collective="broadcast"), set()).startswith("rank 1 waits in broadcast in step 7")


def test_all_ranks_in_one_collective_point_to_the_network():
    assert "all ranks stand in the collective all_reduce in step 7" in diagnosis.blame(group(), set())


def test_rank_that_never_reported_is_named():
    assert diagnosis.blame(group(), set(), missing=[3]) == "rank 3 did not start"


def test_stopped_process_is_told_from_others():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        found = group(process=process.pid, host=os.uname().nodename, collective="")
        text = diagnosis.blame(found, {1})
        assert text.startswith("rank 1 froze in step 7, phase train: its process is stopped (SIGSTOP); ranks 0, 2 wait")
    finally:
        process.kill()
        process.wait()


class Clock:
    """Time that tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_group_hangs_when_no_rank_moved_for_the_timeout(tmp_path: Path, clock: Clock):
    observer = diagnosis.Observer(tmp_path, 2, hang_timeout_s=60.0, clock=clock)
    for moves in range(1, 4):
        for rank in range(2):
            reports.write(tmp_path, dataclasses.replace(WAITING, rank=rank, moves=moves, beats=moves))
        clock.now += 50
        assert observer.check() is None
    clock.now += 59
    assert observer.check() is None
    clock.now += 2
    assert "no rank went forward for 60 s: ranks 0, 1 froze" in str(observer.check())


def test_one_rank_that_moves_is_enough(tmp_path: Path, clock: Clock):
    observer = diagnosis.Observer(tmp_path, 2, hang_timeout_s=60.0, clock=clock)
    reports.write(tmp_path, dataclasses.replace(WAITING, rank=0))
    for moves in range(1, 6):
        reports.write(tmp_path, dataclasses.replace(WAITING, rank=1, moves=moves))
        assert observer.check() is None
        clock.now += 59


def test_start_has_more_time_but_ends_too(tmp_path: Path, clock: Clock):
    observer = diagnosis.Observer(tmp_path, 2, hang_timeout_s=60.0, clock=clock)
    reports.write(tmp_path, dataclasses.replace(WAITING, rank=0, moves=0))
    assert observer.check() is None
    clock.now += 899
    assert observer.check() is None
    clock.now += 2
    assert observer.check() == "no rank went forward for 900 s: rank 1 did not start"


def test_half_a_report_is_passed_over(tmp_path: Path):
    reports.write(tmp_path, WAITING)
    assert reports.read(tmp_path, 2) == {0: WAITING}
    path = reports.path_of(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:40])
    assert reports.read(tmp_path, 2) == {}
