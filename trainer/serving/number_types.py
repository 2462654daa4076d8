"""The type that vLLM computes in. It is said, because vLLM's own choice for FP32 weights depends on the machine."""

from __future__ import annotations

import json
from pathlib import Path


def of_folder(model: Path, on_gpu: bool) -> str:
    """The type of the folder's weights; on GPUs BF16 for FP32 ones, as fast attention takes no FP32."""
    fields = json.loads((model / "config.json").read_text(encoding="utf-8"))
    stored = fields.get("dtype") or fields.get("torch_dtype") or "float32"
    return "bfloat16" if on_gpu and stored == "float32" else stored
