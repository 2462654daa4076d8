"""Memory of this process by phase, and an alarm when a phase takes more than it ever did."""

from __future__ import annotations

import dataclasses
import os
import resource
import sys

import torch

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes on macOS, KiB on Linux
_GIB = 2**30
# A peak this much beyond all earlier ones of its phase is a spike; what varies with the batch stays below.
_SPIKE = 1.15
_SPIKE_GIB = 0.25
_SETTLED = 5  # records of a phase before one of them can be a spike


@dataclasses.dataclass(frozen=True)
class Usage:
    """GiB of one rank: held and reserved now, and the most that was held in the phase that just ended."""

    allocated: float
    reserved: float
    peak: float


class MemoryMeter:
    """Measures one device; never waits for it. Without a GPU it is resident memory, whose peak is the process's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_gpu = device.type == "cuda"

    def begin(self) -> None:
        """A phase begins."""
        if self._is_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)

    def usage(self) -> Usage:
        """Of the phase since `begin`."""
        if not self._is_gpu:
            resident = _resident_bytes() / _GIB
            return Usage(resident, resident, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / _GIB)
        return Usage(
            torch.cuda.memory_allocated(self._device) / _GIB,
            torch.cuda.memory_reserved(self._device) / _GIB,
            torch.cuda.max_memory_allocated(self._device) / _GIB,
        )

    def num_retries(self) -> int:
        """How often the allocator had to give memory back before it found room."""
        return torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0) if self._is_gpu else 0


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


@dataclasses.dataclass(frozen=True)
class Circumstances:
    """What may explain a peak: of the step, over all ranks."""

    trained_tokens: int
    num_documents: int
    reserved_gib: float
    num_retries: int
    is_detailed: bool


class MemoryAlarm:
    """Compares the peaks of one phase over time."""

    def __init__(self, phase: str) -> None:
        self._phase = phase
        self._highest = 0.0
        self._num_seen = 0
        self._before: Circumstances | None = None

    def add(self, peaks: list[float], now: Circumstances) -> str | None:
        """Takes each rank's peak in GiB; returns what to say of a spike."""
        peak = max(peaks)
        is_spike = self._num_seen >= _SETTLED and peak > max(_SPIKE * self._highest, self._highest + _SPIKE_GIB)
        told = None
        if is_spike and self._before is not None:
            told = (
                f"memory of rank {peaks.index(peak)} rose to {peak:.2f} GiB in {self._phase}, {self._highest:.2f} at"
                f" most before; likely because {_likely_cause(now, self._before)}"
            )
        self._num_seen += 1
        self._highest = max(self._highest, peak)
        before = self._before or now
        self._before = Circumstances(
            max(before.trained_tokens, now.trained_tokens),
            max(before.num_documents, now.num_documents),
            now.reserved_gib,
            now.num_retries,
            before.is_detailed or now.is_detailed,
        )
        return told


def _likely_cause(now: Circumstances, before: Circumstances) -> str:
    """From what is surest to what is left."""
    if now.trained_tokens > 1.1 * before.trained_tokens:
        return (
            f"the step trains {now.trained_tokens:,} tokens, {before.trained_tokens:,} at most before: more logits; set"
            " loss.chunk_tokens"
        )
    if now.num_documents > 1.2 * before.num_documents:
        return f"its blocks hold {now.num_documents:,} documents, {before.num_documents:,} at most before"
    if now.num_retries > before.num_retries:
        return (
            "memory is cut up: the allocator gave memory back and asked again; set"
            " PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
        )
    if now.is_detailed and not before.is_detailed:
        return "the step records details (metrics.detail_every_steps)"
    return (
        "something is kept from step to step, in a user's code or an extension: batch and settings are as before;"
        " torch.cuda.memory._record_memory_history shows what"
    )
