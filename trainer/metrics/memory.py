"""Memory: what this process held at most, and what there is."""

from __future__ import annotations

import os
import resource
import sys

import torch

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes on macOS, KiB on Linux


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held at one time since the process began, in GiB: the allocator's on a GPU, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 2**30


def memory_limit_gib(device: torch.device) -> float:
    """All memory of the GPU, or of this host, in GiB."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
