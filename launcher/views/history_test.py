"""Histories: tries, curves over restarts, time left."""

import math

import pytest

from finecut.launcher.views.history import Curve, StageHistory
from finecut.proto import service_pb2


def event(at: float, **what: object) -> service_pb2.JobEvent:
    found = service_pb2.JobEvent(stage="sft", **what)
    found.at.FromNanoseconds(int(at * 1e9))
    return found


def step(at: float, number: int, loss: float = 1.0, total: int = 10) -> service_pb2.JobEvent:
    return event(at, step=service_pb2.StepMetrics(step=number, total_steps=total, values={"loss": loss}))


def folded(*events: service_pb2.JobEvent) -> StageHistory:
    history = StageHistory()
    for each in events:
        history.add(each)
    return history


def test_steps_that_a_resumed_try_repeats_replace_those_of_the_try_before() -> None:
    steps = [step(n, n, loss=n) for n in (1, 2, 3, 4)]
    history = folded(*steps, step(10, 3, loss=30), step(11, 4, loss=40))
    assert history.curves["loss"] == Curve([1, 2, 3, 4], [1, 2, 30, 40])


def test_evaluations_have_curves_of_their_own() -> None:
    before = event(1, evaluation=service_pb2.StepMetrics(step=0, values={"loss": 3}))
    after = event(5, evaluation=service_pb2.StepMetrics(step=2, values={"loss": 1}))
    history = folded(before, step(2, 1), step(3, 2), after)
    assert history.curves["evaluation_loss"] == Curve([0, 2], [3, 1])
    assert history.step == 2 and history.curves["loss"].steps == [1, 2]


def test_values_that_are_not_finite_are_kept_but_not_drawn() -> None:
    curve = folded(step(1, 1), step(2, 2, loss=math.nan), step(3, 3, loss=math.inf)).curves["loss"]
    assert curve.steps == [1, 2, 3] and list(curve.finite()) == [(1, 1.0)]


def test_a_try_whose_launcher_was_killed_ends_with_its_last_event() -> None:
    running, done = event(0, state=service_pb2.RUNNING), event(120, state=service_pb2.SUCCEEDED)
    history = folded(running, step(8, 1), event(100, state=service_pb2.RUNNING), done)
    assert [(each.started, each.ended) for each in history.tries] == [(0, 8), (100, 120)]
    assert history.seconds(now=1000) == pytest.approx(28)


def test_a_try_at_work_counts_until_now() -> None:
    assert folded(event(5, state=service_pb2.RUNNING)).seconds(now=25) == 20


def test_time_left_is_measured_from_the_newest_try() -> None:
    history = folded(step(0, 1), step(100, 5))
    assert history.seconds_left() == pytest.approx(25 * 5)
    history.add(event(200, state=service_pb2.RUNNING))
    assert history.seconds_left() is None, "a new try has no pace yet"
    history.add(step(201, 4))
    history.add(step(203, 6))
    assert history.seconds_left() == pytest.approx(4)


def test_an_end_without_a_start_is_no_try() -> None:
    assert folded(event(1, state=service_pb2.FAILED)).tries == []
