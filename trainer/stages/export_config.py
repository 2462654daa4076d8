"""What an export stage is asked to do."""

from __future__ import annotations

import dataclasses

import torch

from finecut.proto import delivery_pb2

_WEIGHT_TYPES = {
    delivery_pb2.Export.WEIGHT_BF16: torch.bfloat16,
    delivery_pb2.Export.WEIGHT_FP16: torch.float16,
    delivery_pb2.Export.WEIGHT_FP32: torch.float32,
}


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Export, resolved."""

    # "@stage" or a path.
    model: str
    # Write the adapter alone rather than a whole model.
    adapter_only: bool
    # Of the weights in a whole model; an adapter is FP32 always.
    weight_type: torch.dtype
    # Bound on one safetensors file.
    max_shard_bytes: int
    sample_prompts: tuple[str, ...]
    # Longest answer, in tokens.
    sample_max_new_tokens: int
    # Hold the export in vLLM to the trainer too.
    check_vllm: bool

    @staticmethod
    def from_proto(export: delivery_pb2.Export) -> ExportConfig:
        """From a resolved message."""
        return ExportConfig(
            model=export.model,
            adapter_only=export.format == delivery_pb2.Export.ADAPTER,
            weight_type=_WEIGHT_TYPES[export.weight_type],
            max_shard_bytes=export.max_shard_bytes,
            sample_prompts=tuple(export.sample_prompts),
            sample_max_new_tokens=export.sample_max_new_tokens,
            check_vllm=export.check_vllm,
        )
