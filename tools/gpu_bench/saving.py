"""What a checkpoint in the background every 20 steps costs those steps, and how fast it is written and read."""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from finecut.tools.gpu_bench.cases import Case
from finecut.tools.gpu_bench.training import Session, free
from finecut.trainer.checkpoint import location
from finecut.trainer.checkpoint.store import CheckpointStore, TrainState
from finecut.trainer.keeping import CheckpointConfig
from finecut.trainer.parallel.process_group import Devices

STEPS_A_SAVE = 20
_BASELINE_STEPS = 8
_SAVES = 1
_DISK_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True)
class SavingCost:
    """Times in seconds, sizes in GB, rates in GB/s.

    `extra`: of each save, how much longer the 20 steps after it took together, the stall before them included.
    `written`: seconds after the save at which it was seen to count, between two steps.
    """

    step: float
    stall: tuple[float, ...]
    extra: tuple[float, ...]
    written: tuple[float, ...]
    load: float
    gigabytes: float
    disk_write: float


def measure(case: Case, devices: Devices) -> SavingCost:
    """Trains, saves in the background while training goes on, and loads the last checkpoint."""
    session = Session(case, "", devices)
    for _ in range(3):
        session.step(session.batches())
    baseline = statistics.mean(session.step(session.batches())[0] for _ in range(_BASELINE_STEPS))
    with tempfile.TemporaryDirectory() as folder:
        disk = _disk_rate(Path(folder))
        place = location.at(folder)
        store = CheckpointStore(place, CheckpointConfig(1, 1, None, True), seed=0, devices=session.devices)
        store.prepare(session.model, session.optimizer)
        stall: list[float] = []
        extra: list[float] = []
        written: list[float] = []
        state = TrainState("config", "data", "code")
        for number in range(1, _SAVES + 1):
            state.step = number
            started = time.perf_counter()
            store.save(session.model, session.optimizer, state)
            stall.append(time.perf_counter() - started)
            slower, manifest = stall[-1], Path(folder) / f"step-{number:08d}" / "manifest.json"
            for _ in range(STEPS_A_SAVE):
                slower += session.step(session.batches())[0] - baseline
                if len(written) < number and manifest.exists():
                    written.append(time.perf_counter() - started)
            extra.append(slower)
        store.wait()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e9
        started = time.perf_counter()
        newest, _ = store.newest()
        assert newest is not None
        store.load(newest, session.model, session.optimizer, state)
        torch.cuda.synchronize()
        load = time.perf_counter() - started
    del session, store
    free()
    return SavingCost(baseline, tuple(stall), tuple(extra), tuple(written), load, size, disk)


def _disk_rate(folder: Path) -> float:
    """GB/s of one stream that is made durable at its end."""
    chunk = os.urandom(64 << 20)
    started = time.perf_counter()
    with open(folder / "disk", "wb") as file:
        for _ in range(_DISK_BYTES // len(chunk)):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    os.remove(folder / "disk")
    return _DISK_BYTES / 1e9 / seconds
