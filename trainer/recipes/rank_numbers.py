"""What differs from rank to rank, exchanged at once: time and memory by phase, operations, waiting for data."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from finecut.trainer.metrics.memory import Circumstances, MemoryAlarm, MemoryMeter, Usage
from finecut.trainer.metrics.memory_limit import memory_limit_gib
from finecut.trainer.parallel.process_group import Devices

_MOST_RANKS_SHOWN = 16  # with numbers of their own; of more, the extremes alone


@dataclasses.dataclass(frozen=True)
class OfRank:
    """One rank's since the last exchange. `steps_to_wait`: rank 0's, until the next record and the next details."""

    flops: float
    data_seconds: float
    num_documents: int
    steps_to_wait: tuple[int, int] = (1, 1)


@dataclasses.dataclass(frozen=True)
class OfAll:
    """Of all ranks, the same on each. `values`: what is recorded as it is."""

    flops: float
    steps_to_wait: tuple[int, int]
    values: dict[str, float]


class RankNumbers:
    """Measures phases, such as "train" and "checkpoint"; a phase of that name is what memory is told of first."""

    def __init__(self, devices: Devices, phases: Sequence[str], say: Callable[[str], None]) -> None:
        self._devices, self._names, self._say = devices, tuple(phases), say
        self._meter = MemoryMeter(devices.device)
        self._alarms = {name: MemoryAlarm(name) for name in phases}
        self._phases: dict[str, tuple[float, Usage]] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase runs inside; several of one name count as one."""
        self._meter.begin()
        started = time.perf_counter()
        yield
        seconds, held = time.perf_counter() - started, self._meter.usage()
        if name in self._phases:
            before, earlier = self._phases[name]
            seconds, held = before + seconds, dataclasses.replace(held, peak=max(held.peak, earlier.peak))
        self._phases[name] = (seconds, held)

    def exchange(self, own: OfRank, trained_tokens: int, is_detailed: bool) -> OfAll:
        """Collective. `trained_tokens` of the step, over all ranks: they may explain a peak of memory."""
        devices = self._devices
        row = [own.flops, own.data_seconds, own.num_documents, *own.steps_to_wait]
        first = len(row)
        for name in self._names:
            seconds, held = self._phases.get(name, (0.0, Usage(0.0, 0.0, 0.0)))
            row += [seconds, held.allocated, held.reserved, held.peak]
        rows = [0.0] * (len(row) * devices.world_size)
        rows[len(row) * devices.rank : len(row) * (devices.rank + 1)] = row
        gathered = torch.tensor(devices.sum(*rows), dtype=torch.float64).view(devices.world_size, len(row))
        self._phases = {}
        values = {"data_wait_seconds_slowest_rank": float(gathered[:, 1].max())}
        documents = int(gathered[:, 2].sum())
        for number, name in enumerate(self._names):
            seconds_R, allocated_R, reserved_R, peak_R = gathered[:, first + 4 * number : first + 4 * number + 4].T
            if not float(peak_R.max()):
                continue
            values |= self._memory(name, allocated_R, reserved_R, peak_R)
            if name != "train":
                values[f"{name}_seconds"] = float(seconds_R.max())
            now = Circumstances(
                trained_tokens, documents, float(reserved_R.max()), self._meter.num_retries(), is_detailed
            )
            if told := self._alarms[name].add(peak_R.tolist(), now):
                self._say(told)
        waits = (int(gathered[0, 3]), int(gathered[0, 4]))
        return OfAll(float(gathered[:, 0].sum()), waits, values)

    def _memory(self, phase: str, allocated_R: Tensor, reserved_R: Tensor, peak_R: Tensor) -> dict[str, float]:
        """Of the fullest rank, and of each of a few."""
        found = {
            f"memory/{phase}/allocated_gib": float(allocated_R.max()),
            f"memory/{phase}/reserved_gib": float(reserved_R.max()),
            f"memory/{phase}/peak_gib": float(peak_R.max()),
        }
        if phase == "train":
            found["peak_memory_gib"] = float(peak_R.max())
            found["memory_limit_gib"] = memory_limit_gib(self._devices.device)
            if 1 < len(peak_R) <= _MOST_RANKS_SHOWN:
                found |= {f"memory/rank{rank}/peak_gib": value for rank, value in enumerate(peak_R.tolist())}
        return found
