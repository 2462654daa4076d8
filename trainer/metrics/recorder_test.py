"""A writer that fails, a full disk and a clock that jumps stop nothing, and are told once."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finecut.proto.run import events
from finecut.proto.run.events import follow
from finecut.trainer.metrics import recorder as recorder_module
from finecut.trainer.metrics.clock import Clock
from finecut.trainer.metrics.recorder import Recorder

MAIN = SimpleNamespace(is_main=True)


def place(folder: Path, **changes: Path) -> SimpleNamespace:
    places = {"tensorboard": folder / "tensorboard", "events": folder / "events.jsonl"} | changes
    return SimpleNamespace(stage="sft", **places)


def messages(folder: Path) -> list[str]:
    return [event.message for event in follow(folder / "events.jsonl")[0] if event.message]


def test_everything_is_written(tmp_path: Path) -> None:
    with Recorder(place(tmp_path), 2, 0, MAIN) as recorder:
        recorder.step(1, {"loss": 2.0})
        recorder.histogram("tokens/loss", 1, torch.rand(5))
        recorder.text("samples", 1, "words")
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert [event.value for event in curves.Scalars("train/loss")] == [2.0]
    assert curves.Tags()["histograms"] == ["tokens/loss"]
    assert follow(tmp_path / "events.jsonl")[0][0].step.values["loss"] == 2.0


def test_a_full_disk_is_told_once_and_curves_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(file: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(events, "os", SimpleNamespace(**(vars(os) | {"write": full})))
    with Recorder(place(tmp_path), 3, 0, MAIN) as recorder:
        for step in (1, 2, 3):
            recorder.step(step, {"loss": float(step)})
    assert capfd.readouterr().err.count("the event log cannot be written ([Errno 28] No space left") == 1
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert len(curves.Scalars("train/loss")) == 3


def test_a_tensorboard_that_fails_is_told_once_in_the_event_log(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with Recorder(place(tmp_path, tensorboard=blocked / "tensorboard"), 3, 0, MAIN) as recorder:
        for step in (1, 2, 3):
            recorder.step(step, {"loss": float(step)})
    told = [message for message in messages(tmp_path) if "TensorBoard's files cannot be written" in message]
    assert len(told) == 1
    assert len([event for event in follow(tmp_path / "events.jsonl")[0] if event.WhichOneof("event") == "step"]) == 3


def test_it_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "_RETRY_S", 0.0)
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with Recorder(place(tmp_path, tensorboard=blocked), 2, 0, MAIN) as recorder:
        recorder.step(1, {"loss": 1.0})
        blocked.unlink()
        recorder.step(2, {"loss": 2.0})
    curves = EventAccumulator(str(blocked))
    curves.Reload()
    assert [event.step for event in curves.Scalars("train/loss")] == [2]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with Recorder(place(tmp_path), 1, 0, SimpleNamespace(is_main=False)) as recorder:
        recorder.step(1, {"loss": 1.0})
        recorder.message("text")
    assert list(tmp_path.iterdir()) == []


def test_a_jump_of_the_clock_is_told_once() -> None:
    times = {"wall": 1_000.0, "steady": 50.0}
    clock = Clock(lambda: times["wall"], lambda: times["steady"])
    times.update(wall=1_060.0, steady=110.0)
    assert clock.jump() == 0
    times.update(wall=-2_540.0)
    assert clock.jump() == -3_600.0
    times.update(wall=1_060.0)
    assert clock.jump() == 0
