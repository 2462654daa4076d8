"""What OpenMP finds in the environment."""

import os

import pytest

from finecut.trainer import threads


def test_threads_that_wait_sleep_unless_the_user_wants_it_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that what is set here is taken back
    monkeypatch.delenv("OMP_WAIT_POLICY")
    threads.prepare()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("64", "PASSIVE")
    os.environ["OMP_WAIT_POLICY"] = "ACTIVE"
    threads.prepare(3)
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("3", "ACTIVE")
