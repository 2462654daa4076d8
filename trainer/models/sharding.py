"""Parameters whatever wraps them: their plain names, and what one rank holds of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

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
    """The whole tensor. Collective: every rank calls it, in the same order."""
    parameter = parameter.detach()
    if not isinstance(parameter, DTensor):
        return parameter
    # One dimension of the mesh after the other, outermost first: under tensor parallelism a dimension of the tensor may
    # be cut twice, and DTensor undoes only one cut at a time.
    placements = list(parameter.placements)
    for dimension in range(len(placements)):
        placements[dimension] = Replicate()
        parameter = parameter.redistribute(placements=placements)
    return parameter.to_local()
