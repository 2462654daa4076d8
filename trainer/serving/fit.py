"""Whether a model's weights fit where they are to be served. Sizes come from its files' headers; nothing is loaded."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from finecut.proto.config import UserError

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# vLLM takes 0.9 of a GPU; a tenth of that is left for activations and a little cache, which is the least to work with.
_USABLE = 0.9 * 0.9
_GB = 1e9


def require(model: Path, number_type: str, num_gpus: int, num_replicas: int, on_gpu: bool) -> None:
    """Raises UserError where the weights are larger than the memory of a replica's GPUs, or of the machine."""
    needed = num_parameters(model) * _BYTES[number_type]
    if on_gpu:
        available, where = _gpu_bytes() * num_gpus * _USABLE, f"{num_gpus} GPUs of {_gpu_bytes() / _GB:.0f} GB"
        fix = "raise tensor_parallel_size"
    else:
        needed *= num_replicas
        available, where, fix = _machine_bytes() * _USABLE, "this machine's memory", "use fewer replicas"
    if needed > available:
        raise UserError(
            f"deploy.model: its weights take {needed / _GB:.1f} GB in {number_type}, and {where} leave"
            f" {available / _GB:.1f} GB for them; {fix}, or serve a smaller model"
        )


def num_parameters(model: Path) -> int:
    """Numbers in the model's safetensors files."""
    total = 0
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for length in tensor["shape"]:
                    size *= length
                total += size
    return total


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu_bytes() -> float:
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    return min(map(float, listed)) * 2**20
