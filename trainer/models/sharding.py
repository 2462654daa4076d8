"""Parameters whatever wraps them: their plain names, and what one rank holds of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


@dataclasses.dataclass(frozen=True)
class Box:
    """The part of a tensor that begins at `offset` and has `size`, both in elements of each dimension."""

    offset: tuple[int, ...]
    size: tuple[int, ...]

    def slices(self) -> tuple[slice, ...]:
        """As an index."""
        return tuple(slice(o, o + s) for o, s in zip(self.offset, self.size, strict=True))


# What activation checkpointing and torch.compile put into the names of what they wrap.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def plain_name(name: str) -> str:
    """The name that a parameter or module has without wrappers."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters by plain name, in the model's order."""
    for name, parameter in model.named_parameters():
        yield plain_name(name), parameter


def local_box(parameter: Tensor) -> Box:
    """Where in the whole tensor this rank's part lies."""
    if not isinstance(parameter, DTensor):
        return Box((0,) * parameter.ndim, tuple(parameter.shape))
    size, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return Box(tuple(offset), tuple(size))


def local_part(parameter: Tensor) -> Tensor:
    """This rank's part, sharing memory with the parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def gather(parameter: Tensor) -> Tensor:
    """The whole tensor. Collective: every rank calls it, in the same order.

    The mesh's outer dimensions cut what the inner ones had cut before (tensor parallelism, then FSDP2), so they are put
    together first. DTensor's own way does not know that order in all versions of torch, and warns about it in others.
    """
    if not isinstance(parameter, DTensor):
        return parameter.detach()
    mesh = parameter.device_mesh
    cuts = [(i, p.dim) for i, p in enumerate(parameter.placements) if not isinstance(p, Replicate)]  # type: ignore[attr-defined]
    value = parameter.detach().to_local()
    for number, (mesh_dimension, dimension) in enumerate(cuts):
        inner = math.prod(mesh.size(i) for i, other in cuts[number + 1 :] if other == dimension)
        length = parameter.shape[dimension] // inner
        value = _concatenate(value, dimension, length, mesh.get_group(mesh_dimension))
    return value


def _concatenate(part: Tensor, dimension: int, length: int, group: dist.ProcessGroup) -> Tensor:
    """Puts together what `torch.chunk` had cut into one part for each rank; the last ones may be smaller, or empty."""
    if group.size() == 1:
        return part
    shape = list(part.shape)
    shape[dimension] = -(-length // group.size())
    padded = part.new_zeros(shape)
    padded.narrow(dimension, 0, part.shape[dimension]).copy_(part)
    parts = [torch.empty_like(padded) for _ in range(group.size())]
    dist.all_gather(parts, padded, group=group)
    return torch.cat(parts, dim=dimension).narrow(dimension, 0, length)
