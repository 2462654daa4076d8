"""Peak memory of this process."""

from __future__ import annotations

import resource
import sys

import torch

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes on macOS, KiB on Linux


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held at one time since the process began, in GiB: the allocator's on a GPU, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 2**30
