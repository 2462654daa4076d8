"""Checkpoints continue a run exactly, written at once or in the background, in folders and in object stores."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from finecut.proto.config import UserError
from finecut.trainer.checkpoint import manifest
from finecut.trainer.checkpoint.location import Folder
from finecut.trainer.checkpoint.testing import Trial, newest_whole
from finecut.trainer.parallel import process_group
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes.testing import run_ranks


@pytest.fixture(scope="module")
def devices() -> Iterator[Devices]:
    with process_group.connect() as devices:
        yield devices


@pytest.mark.parametrize("asynchronous", [False, True], ids=["at-once", "in-background"])
@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_resumed_training_goes_on_exactly(devices, tmp_path, kind, asynchronous):
    place = str(tmp_path) if kind == "folder" else f"memory://{uuid.uuid4().hex}"
    trial = Trial(devices, place, asynchronous)
    trial.train(3)
    trial.save()
    trial.train(2)  # the copy must not see this
    trial.store.wait()
    resumed = Trial(devices, place, asynchronous)
    resumed.train(1)
    assert resumed.resume() == []
    assert resumed.state.step == 3
    resumed.train(2)
    assert torch.equal(resumed.weights(), trial.weights())


def test_save_returns_before_the_checkpoint_is_written_and_waits_for_the_one_before(devices, tmp_path, monkeypatch):
    allowed, begun = threading.Event(), threading.Event()
    finish = manifest.finish

    def slow_finish(*arguments: Any) -> None:
        begun.set()
        assert allowed.wait(300)
        finish(*arguments)

    monkeypatch.setattr(manifest, "finish", slow_finish)
    trial = Trial(devices, str(tmp_path))
    trial.train()
    trial.save()
    assert begun.wait(300)
    assert newest_whole(tmp_path)[0] is None
    trial.train()
    second = threading.Thread(target=trial.save)
    second.start()
    second.join(0.3)
    assert second.is_alive(), "the buffers of the first are still being written"
    allowed.set()
    second.join(300)
    trial.store.wait()
    assert newest_whole(tmp_path)[0] == "step-00000002"


def test_the_first_save_finds_its_buffers_ready(devices, tmp_path, monkeypatch):
    trial, other = Trial(devices, str(tmp_path / "a")), Trial(devices, str(tmp_path / "b"))
    places: list[list[int]] = []
    copy = trial.store._staging.copy

    def observed(tensors: dict[str, Any]) -> dict[str, Any]:
        copied = copy(tensors)
        places.append(addresses(copied))
        return copied

    monkeypatch.setattr(trial.store._staging, "copy", observed)
    trial.store.prepare(trial.model, trial.optimizer)
    for each in (trial, other):
        torch.manual_seed(1)
        each.train()
        each.save()
        each.store.wait()
    assert places[0] == places[1] and len(places[0]) > 4
    assert torch.equal(trial.weights(), other.weights()), "preparing is no step"


def addresses(value: Any) -> list[int]:
    """Of all tensors in a state dict."""
    if isinstance(value, torch.Tensor):
        return [value.data_ptr()]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [address for item in items for address in addresses(item)]


def test_old_checkpoints_are_deleted_and_torn_ones_written_again(devices, tmp_path):
    trial = Trial(devices, str(tmp_path), keep_last=2)
    for _ in range(3):
        trial.train()
        trial.save()
    trial.store.wait()
    assert manifest.candidates(Folder(tmp_path)) == ["step-00000003", "step-00000002"]
    (tmp_path / "step-00000003" / "left-over").write_text("x")
    trial.save()
    trial.store.wait()
    assert not (tmp_path / "step-00000003" / "left-over").exists()


def test_checkpoint_of_another_config_is_refused(devices, tmp_path):
    trial = Trial(devices, str(tmp_path))
    trial.train()
    trial.save()
    trial.store.wait()
    with pytest.raises(UserError, match=r"step-00000001 was made with another config than this run's"):
        Trial(devices, str(tmp_path), config_fingerprint="another").resume()


def test_checkpoint_of_other_code_is_refused_unless_accepted(devices, tmp_path):
    trial = Trial(devices, str(tmp_path))
    trial.train()
    trial.save()
    trial.store.wait()
    with pytest.raises(UserError, match=r"made by code version 1 and this is 2.* set accept_other_code=true"):
        Trial(devices, str(tmp_path), code_version="2").resume()
    accepting = Trial(devices, str(tmp_path), code_version="2", accepts_other_code=True)
    accepting.resume()
    assert (accepting.state.step, accepting.state.code_version) == (1, "2")


class Counter:
    """A part as a recipe would add it."""

    def __init__(self, value: int, every_rank: bool) -> None:
        self.value = torch.tensor([value])
        self.every_rank = every_rank
        self.restored: list[int] = []

    def capture(self) -> dict[str, Any]:
        return {"value": self.value.clone()}

    def restore(self, states: Sequence[dict[str, Any]], step: int) -> None:
        self.restored = [int(state["value"]) for state in states]


def save_with_parts(folder: Path) -> None:
    with process_group.connect() as devices:
        parts = {"policy": Counter(7, every_rank=False), "buffer": Counter(10 + devices.rank, every_rank=True)}
        trial = Trial(devices, str(folder), parts=parts)
        trial.train()
        trial.save()
        trial.store.wait()


def test_parts_come_back_on_another_number_of_ranks(devices, tmp_path):
    run_ranks(2, save_with_parts, tmp_path)
    parts = {"policy": Counter(0, every_rank=False), "buffer": Counter(0, every_rank=True)}
    Trial(devices, str(tmp_path), parts=parts).resume()
    assert parts["policy"].restored == [7]
    assert parts["buffer"].restored == [10, 11]
