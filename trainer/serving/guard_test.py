"""What a guarded program starts ends with it, and with whoever started the guard."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finecut.trainer.serving.process import is_running

LIMIT_S = 300
# Starts a child of its own, says both numbers, and waits; on SIGTERM it leaves the child behind.
PROGRAM = """
import os, signal, subprocess, sys
deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
child = subprocess.Popen([sys.executable, "-c", deaf])
signal.signal(signal.SIGTERM, lambda number, frame: os._exit(7))
with open(sys.argv[1] + ".tmp", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".tmp", sys.argv[1])
signal.pause()
"""
# Starts a guard and waits.
STARTER = """
import subprocess, sys
guard = [sys.executable, "-m", "finecut.trainer.serving.guard"]
sys.exit(subprocess.Popen([*guard, *sys.argv[1:]], stdin=subprocess.PIPE, start_new_session=True).wait())
"""


class Guarded:
    """A starter, the program that it has guarded, and the program's child."""

    def __init__(self, folder: Path) -> None:
        told = folder / "processes"
        command = [sys.executable, "-c", STARTER, sys.executable, "-c", PROGRAM, str(told)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.starter = subprocess.Popen(command, env=environment)
        wait_until(told.exists)
        self.program, self.child = map(int, told.read_text().split())
        self.guard = os.getpgid(self.program)

    @property
    def is_gone(self) -> bool:
        return not any(map(is_running, (self.guard, self.program, self.child)))


def wait_until(condition) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "not within the limit"
        time.sleep(0.05)


@pytest.fixture
def guarded(tmp_path: Path):
    made = Guarded(tmp_path)
    yield made
    made.starter.kill()
    made.starter.wait()


def test_all_end_with_a_starter_that_is_killed(guarded: Guarded) -> None:
    assert not guarded.is_gone
    guarded.starter.kill()
    wait_until(lambda: guarded.is_gone)


def test_all_end_with_a_guard_that_is_killed(guarded: Guarded) -> None:
    """As Ray does with the children of a worker that ends."""
    os.kill(guarded.guard, signal.SIGKILL)
    wait_until(lambda: guarded.is_gone)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_program_leaves_ends_with_it(guarded: Guarded, number: signal.Signals) -> None:
    os.kill(guarded.program, number)
    wait_until(lambda: guarded.is_gone)


def test_a_program_that_is_asked_to_end_has_its_own_way(guarded: Guarded) -> None:
    """The group is asked, as `VllmServer.stop` does; the starter waits for the guard, whose status is the program's."""
    os.killpg(guarded.guard, signal.SIGTERM)
    wait_until(lambda: guarded.is_gone)
    assert guarded.starter.wait(LIMIT_S) == 7
