"""The norm of all gradients, whatever the mesh they lie on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate


def total_norm(gradients: Sequence[Tensor]) -> float:
    """Euclidean norm of all gradients together, the same on every rank. Collective over all ranks.

    Each DTensor covers all ranks. One number goes over the network, where DTensor's own norm would reduce each
    dimension of the mesh. Not finite where any rank's part is not.
    """
    if not gradients:
        return 0.0
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    norms = torch.stack(torch._foreach_norm(local)).double()
    copies = norms.new_tensor([num_copies(gradient) for gradient in gradients])
    total = (norms.square() / copies).sum()
    dist.all_reduce(total)
    return math.sqrt(total.item()) if total >= 0 else math.nan


def num_copies(gradient: Tensor) -> int:
    """How many ranks hold each element."""
    if not isinstance(gradient, DTensor):
        return dist.get_world_size()
    sizes = zip(gradient.placements, gradient.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if isinstance(placement, Replicate))
