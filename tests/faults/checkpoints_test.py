"""Checkpoints under crashes, damage, and slow or failing storage: the last whole one is always there and is used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from finecut.tests.faults import clock, crashes, damage, storage
from finecut.trainer.checkpoint import manifest, store
from finecut.trainer.checkpoint.location import Folder
from finecut.trainer.checkpoint.testing import Trial, newest_whole
from finecut.trainer.parallel import process_group
from finecut.trainer.parallel.process_group import Devices


@pytest.fixture
def devices() -> Iterator[Devices]:
    with process_group.connect() as devices:
        yield devices


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[str]:
    """A place whose faults are in storage.FAULTS."""
    storage.register()
    storage.reset()
    yield f"faulty://{tmp_path}/checkpoints"
    storage.reset()


def save_third(folder: Path) -> None:
    """Continues from the newest checkpoint and writes step 3, as a process of its own."""
    with process_group.connect() as devices:
        trial = Trial(devices, str(folder), asynchronous=False, size=4, keep_last=1)
        trial.resume()
        trial.train(3 - trial.state.step)
        trial.save()


def test_crash_at_any_write_leaves_a_whole_checkpoint_that_goes_on_exactly(tmp_path):
    def prepare(folder: Path) -> None:
        with process_group.connect() as devices:
            trial = Trial(devices, str(folder), asynchronous=False, size=4)
            trial.train(2)
            trial.save()

    expected, points = None, 0
    assert not crashes.crashes_at(10**9, prepare, tmp_path)
    assert newest_whole(tmp_path) == ("step-00000002", [])
    # Each try finds what the one before has left, so later points are reached only over earlier leftovers.
    while crashes.crashes_at(points + 1, save_third, tmp_path):
        points += 1
        folder, _ = newest_whole(tmp_path)
        assert folder in ("step-00000002", "step-00000003"), f"after crash point {points}"
    assert points > 10
    with process_group.connect() as devices:
        undisturbed = Trial(devices, str(tmp_path / "elsewhere"), size=4)
        undisturbed.train(4)
        expected = undisturbed.weights()
        last = Trial(devices, str(tmp_path), size=4)
        assert last.resume() == []
        assert last.state.step == 3
        last.train(1)
        assert torch.equal(last.weights(), expected)


def test_every_damage_is_found_and_the_checkpoint_before_is_used(devices, tmp_path):
    trial = Trial(devices, str(tmp_path), size=8)
    for _ in range(2):
        trial.train()
        trial.save()
    trial.store.wait()
    for what in damage.each_damage(tmp_path / "step-00000002", count=200):
        folder, notes = trial.store.newest()
        assert folder == "step-00000001" and "step-00000002 is passed over" in notes[0], what
    assert trial.store.newest() == ("step-00000002", [])


def test_storage_that_fails_for_a_moment_costs_nothing_but_time(devices, faulty, monkeypatch):
    monkeypatch.setattr(store, "_RETRY_WAITS_S", (0.01, 0.01))
    trial = Trial(devices, faulty)
    trial.train()
    storage.FAULTS.failing_writes = 2
    trial.save()
    trial.store.wait()
    assert trial.store.newest() == ("step-00000001", [])
    assert storage.FAULTS.failing_writes == 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_storage_that_stays_broken_is_told_and_keeps_what_was_there(devices, faulty, monkeypatch, asynchronous):
    monkeypatch.setattr(store, "_RETRY_WAITS_S", (0.01,))
    trial = Trial(devices, faulty, asynchronous)
    trial.train()
    trial.save()
    trial.store.wait()
    storage.FAULTS.failing_writes = 10**6
    trial.train()
    with pytest.raises(store.CheckpointError, match=r"step-00000002 cannot be written to .*No space left on device"):
        trial.save()
        trial.store.wait()
    storage.reset()
    assert trial.store.newest()[0] == "step-00000001"
    trial.save()
    trial.store.wait()
    assert trial.store.newest() == ("step-00000002", [])


def test_slow_storage_does_not_hold_a_step_up(devices, faulty):
    trial = Trial(devices, faulty, asynchronous=True)
    trial.train()
    trial.save()  # makes the buffers
    trial.store.wait()
    storage.FAULTS.seconds_a_file = 1.0
    began = time.monotonic()
    trial.save()
    stalled = time.monotonic() - began
    trial.store.wait()
    written = time.monotonic() - began
    assert written > 3, "tensors, metadata, generators, numbers and manifest are a file each"
    assert stalled < 0.05 * written


@pytest.mark.parametrize("seconds", [-86_400.0, 86_400.0])
def test_clock_that_jumps_changes_nothing(devices, tmp_path, seconds):
    trial = Trial(devices, str(tmp_path), keep_last=2)
    trial.train()
    trial.save()
    with clock.jumped(seconds):
        trial.train()
        trial.save()
        trial.store.wait()
        assert manifest.candidates(Folder(tmp_path)) == ["step-00000002", "step-00000001"]
        assert trial.store.newest() == ("step-00000002", [])
