"""Times and memory of a function on a GPU."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

import torch

_SLEEP_CYCLES = 40_000_000  # about 20 ms


def milliseconds(function: Callable[[], object], repeats: int = 10, warm_up: int = 3) -> float:
    """Median time of a call on the device, in ms; the cache is as the call itself leaves it.

    The device first sleeps while the host queues every call, as in training, where the host runs ahead.
    """
    for _ in range(warm_up):
        function()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda.synchronize()
    torch.cuda._sleep(_SLEEP_CYCLES)
    events[0].record()
    for event in events[1:]:
        function()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events))


def extra_bytes(function: Callable[[], object]) -> int:
    """Most memory that a call allocates beyond what is there before it, its results included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
