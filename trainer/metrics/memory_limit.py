"""How much memory there is."""

from __future__ import annotations

import os

import torch


def memory_limit_gib(device: torch.device) -> float:
    """All memory of the GPU, or of this host, in GiB."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
