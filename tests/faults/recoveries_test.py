"""Phases of a recovery are told apart, and one that another death interrupts does not count."""

from finecut.proto import service_pb2
from finecut.tests.faults.recoveries import LAUNCHER, RANK, Death, describe, phases


def event(at: float, message: str = "") -> service_pb2.JobEvent:
    found = service_pb2.JobEvent(message=message) if message else service_pb2.JobEvent(step={"step": 3})
    found.at.FromMicroseconds(int(at * 1e6))
    return found


HAPPENED = [
    event(1),
    event(11, "training rank 0 died; restart 1 in 0 s, from the newest checkpoint"),
    event(13, "resumed from step-00000003"),
    event(14),
    event(15),
    event(23, "resumed from step-00000003"),
    event(29),
]


def test_a_ranks_death_has_three_phases_and_a_launchers_two() -> None:
    assert list((phases(Death(RANK, 10), HAPPENED) or {}).values()) == [1, 2, 1]
    assert list((phases(Death(LAUNCHER, 20), HAPPENED) or {}).values()) == [3, 6]
    assert phases(Death(LAUNCHER, 40), HAPPENED) is None


def test_a_launcher_whose_rank_dies_before_a_step_is_left_out() -> None:
    assert phases(Death(LAUNCHER, 5), HAPPENED) is None


def test_figures_leave_out_what_another_death_interrupts() -> None:
    text = describe([Death(RANK, 10), Death(LAUNCHER, 16), Death(LAUNCHER, 20)], HAPPENED)
    assert "after the death of a rank, 1 times" in text and "all: median 4.0, 4.0 at most" in text
    assert "after the death of a launcher, 1 times" in text and "all: median 9.0, 9.0 at most" in text
