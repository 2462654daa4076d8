"""Copies of this process: ordered, replaced where they die, and gone with their parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finecut.dataprep import local_processes
from finecut.dataprep.local_processes import map_in_order


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_processes, "num_cores", lambda: 2)


def wait_until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)


def test_results_are_in_order_and_of_other_processes() -> None:
    parent = os.getpid()
    found = list(map_in_order(lambda item: (item, os.getpid()), list(range(20))))
    assert [item for item, _ in found] == list(range(20))
    assert parent not in {process for _, process in found}


def test_an_error_arrives_as_itself() -> None:
    results = map_in_order(lambda item: 1 // item, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_what_a_killed_process_had_is_done_again(tmp_path: Path) -> None:
    def work(item: int) -> int:
        if item == 3 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    assert list(map_in_order(work, list(range(6)))) == list(range(6))
    assert (tmp_path / "killed").exists()


def test_one_that_is_killed_every_time_ends_it() -> None:
    with pytest.raises(ChildProcessError, match="was killed 3 times"):
        list(map_in_order(lambda item: os.kill(os.getpid(), signal.SIGKILL), [1]))


def test_closing_stops_what_is_at_work(tmp_path: Path) -> None:
    def work(item: int) -> int:
        if item:
            (tmp_path / str(os.getpid())).touch()
            time.sleep(600)
        return item

    results = map_in_order(work, [0, 1])
    assert next(results) == 0
    wait_until(lambda: bool(list(tmp_path.iterdir())))
    results.close()
    wait_until(lambda: not is_alive(next(tmp_path.iterdir()).name))


PROGRAM = """
import os, sys, time
from pathlib import Path
from finecut.dataprep import local_processes

def work(item):
    (Path(sys.argv[1]) / str(os.getpid())).touch()
    time.sleep(600)

list(local_processes.map_in_order(work, [1, 2]))
"""


def test_they_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment)
    wait_until(lambda: bool(list(tmp_path.iterdir())))
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(is_alive(path.name) for path in tmp_path.iterdir()))


def is_alive(process: str) -> bool:
    try:
        return Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
