"""Loading ahead: the same results in the same order, sooner; errors reach the step they belong to."""

import threading

import pytest

from finecut.trainer.data.prefetch import Prefetch


def running() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_results_come_in_order_from_another_thread() -> None:
    ahead = Prefetch(lambda step: (step, threading.current_thread().name), last=20)
    assert [ahead.take(step) for step in range(1, 21)] == [(step, "prefetch") for step in range(1, 21)]
    ahead.close()
    assert not running()


def test_steps_are_loaded_before_they_are_taken_up_to_the_depth() -> None:
    loaded: list[int] = []
    third = threading.Event()

    def load(step: int) -> int:
        loaded.append(step)
        if step == 3:
            third.set()
        return step

    ahead = Prefetch(load, last=100, depth=2)
    ahead.take(1)
    assert third.wait(timeout=300)  # nobody has asked for steps 2 and 3
    assert [ahead.take(step) for step in (2, 3)] == [2, 3]
    assert len(loaded) <= 3 + 2 + 1  # taken, in the queue, in the thread's hand
    ahead.close()
    assert not running()


def test_an_error_is_raised_by_its_own_step() -> None:
    def load(step: int) -> int:
        if step == 3:
            raise OSError("disk gone")
        return step

    ahead = Prefetch(load, last=5)
    assert [ahead.take(1), ahead.take(2)] == [1, 2]
    with pytest.raises(OSError, match="disk gone"):
        ahead.take(3)
    assert not running()
    with pytest.raises(OSError, match="disk gone"):  # asked again, it is tried again
        ahead.take(3)
    assert ahead.take(4) == 4
    ahead.close()


def test_any_step_can_be_taken_next() -> None:
    ahead = Prefetch(lambda step: step, last=50, depth=2)
    assert [ahead.take(step) for step in (7, 8, 3, 4, 50, 1)] == [7, 8, 3, 4, 50, 1]
    ahead.close()
    assert not running()


def test_close_without_a_step_and_twice() -> None:
    ahead = Prefetch(lambda step: step, last=9)
    ahead.close()
    ahead.take(1)
    ahead.close()
    ahead.close()
    assert not running()
