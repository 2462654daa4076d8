"""The gradient's norm by block: the embedding, each layer, the head. See parallel.gradient_norm for the whole."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import nn

from finecut.trainer.models.sharding import local_part, named_parameters
from finecut.trainer.parallel.gradient_norm import num_copies


def block_norms(model: nn.Module, loss_scale: float) -> dict[str, float]:
    """Norms before clipping, by block: "embedding", "layers.0", ... Waits for the device once. Collective."""
    blocks: dict[str, list[tuple[torch.Tensor, int]]] = {}
    for name, parameter in named_parameters(model):
        if parameter.grad is not None:
            local = local_part(parameter.grad)
            blocks.setdefault(_block(name), []).append((local, num_copies(parameter.grad)))
    if not blocks:
        return {}
    squares = [
        sum(torch.linalg.vector_norm(local, dtype=torch.float32).double().square() / copies for local, copies in parts)
        for parts in blocks.values()
    ]
    total = torch.stack([torch.as_tensor(square) for square in squares])
    dist.all_reduce(total)
    return {
        name: math.sqrt(square) / loss_scale if square >= 0 else math.nan
        for name, square in zip(blocks, total.tolist(), strict=True)
    }


def _block(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else parts[0]
