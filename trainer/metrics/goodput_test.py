"""Goodput over restarts: lost steps and the time between tries count as wall time only."""

from pathlib import Path

from finecut.trainer.metrics.goodput import FILE, Goodput


def test_a_restart_loses_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    clock = [1_000.0]
    first = Goodput(tmp_path, 0, lambda: clock[0])
    for _ in range(4):
        clock[0] += 10
        first.add(8.0)
    first.saved(4)
    assert first.share() == 32 / 40
    for _ in range(2):  # lost by a crash
        clock[0] += 10
        first.add(10.0)
    clock[0] += 40  # until it runs again
    second = Goodput(tmp_path, 4, lambda: clock[0])
    assert second.share() == 32 / 100
    clock[0] += 10
    second.add(10.0)
    assert second.share() == 42 / 110


def test_an_older_checkpoint_takes_its_own_sum(tmp_path: Path) -> None:
    clock = [0.0]
    first = Goodput(tmp_path, 0, lambda: clock[0])
    for step in (1, 2):
        clock[0] += 10
        first.add(10.0)
        first.saved(step)
    clock[0] = 40.0
    assert Goodput(tmp_path, 1, lambda: clock[0]).share() == 10 / 40


def test_a_run_from_the_start_and_a_damaged_file_begin_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"started_at": 1')
    for step in (0, 7):
        assert Goodput(tmp_path, step, lambda: 50.0).share() == 0.0


def test_a_clock_set_back_gives_a_share_still(tmp_path: Path) -> None:
    clock = [1_000.0]
    goodput = Goodput(tmp_path, 0, lambda: clock[0])
    goodput.add(5.0)
    goodput.saved(1)
    clock[0] = 500.0
    assert 0.0 <= goodput.share() <= 1.0
    assert 0.0 <= Goodput(tmp_path, 1, lambda: clock[0]).share() <= 1.0
