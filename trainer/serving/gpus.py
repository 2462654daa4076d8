"""The GPUs of this host."""

from __future__ import annotations

import os
import subprocess


def visible() -> list[int]:
    """Numbers of this host's GPUs, or of those that CUDA_VISIBLE_DEVICES leaves."""
    if chosen := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [int(number) for number in chosen.split(",")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return list(range(sum(line.startswith("GPU ") for line in listed.splitlines())))
