"""Which collective a thread waits in, of its own or through the thread that it waits for."""

import runpy
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from finecut.trainer.liveness import stacks

LIMIT_S = 300


@pytest.fixture
def all_gather(tmp_path: Path) -> Callable[[threading.Event], None]:
    """What torch's function looks like from outside: its file and its name."""
    path = tmp_path / "torch" / "distributed" / "distributed_c10d.py"
    path.parent.mkdir(parents=True)
    path.write_text("def all_gather(event):\n    event.wait()\n")
    return runpy.run_path(str(path))["all_gather"]


def wait_for(name: str, thread: threading.Thread) -> None:
    deadline = time.monotonic() + LIMIT_S
    while stacks.collective_of(thread.ident or 0) != name:
        assert time.monotonic() < deadline, f"{name!r} is not told"
        time.sleep(0.01)


def test_a_collective_is_told_of_the_thread_in_it_and_of_one_that_waits_for_that(
    all_gather: Callable[[threading.Event], None],
) -> None:
    event, begun = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as saving:
        saved: Future[None] = saving.submit(all_gather, event)
        [saver] = saving._threads
        waiter = threading.Thread(target=saved.result)
        worker = threading.Thread(target=_work, args=(begun, done := []))
        waiter.start()
        worker.start()
        assert begun.wait(LIMIT_S)
        try:
            wait_for("all_gather", saver)
            wait_for("all_gather", waiter)
            wait_for("", worker)  # it does something else
        finally:
            event.set()
            done.append(True)
    waiter.join()
    worker.join()
    assert stacks.collective_of(waiter.ident or 0) == ""


def _work(begun: threading.Event, done: list[bool]) -> None:
    begun.set()
    while not done:
        sum(range(1000))
