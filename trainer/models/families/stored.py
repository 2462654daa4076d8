"""How files hold a parameter of ours: as a tensor, as a stack of tensors, or as a part of a larger one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor  # the rest of a family is read without torch, by plans


class Reader(Protocol):
    """Reads boxes of named tensors."""

    def read(self, name: str, offset: Sequence[int], size: Sequence[int]) -> Tensor:
        """The box of `size` that begins at `offset`."""
        ...


class Stored(Protocol):
    """A parameter in the files. `shape` is the parameter's own."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that hold it, with their shapes."""
        ...

    def read(self, tensors: Reader, offset: Sequence[int], size: Sequence[int]) -> Tensor:
        """A box of the parameter; nothing else is read."""
        ...


@dataclasses.dataclass(frozen=True)
class Whole:
    """A tensor of the same shape."""

    name: str
    shape: tuple[int, ...]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See Stored."""
        return {self.name: self.shape}

    def read(self, tensors: Reader, offset: Sequence[int], size: Sequence[int]) -> Tensor:
        """See Stored."""
        return tensors.read(self.name, offset, size)


@dataclasses.dataclass(frozen=True)
class Stack:
    """One tensor for each index of the parameter's first dimension."""

    names: tuple[str, ...]
    shape: tuple[int, ...]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See Stored."""
        return dict.fromkeys(self.names, self.shape[1:])

    def read(self, tensors: Reader, offset: Sequence[int], size: Sequence[int]) -> Tensor:
        """See Stored."""
        import torch

        names = self.names[offset[0] : offset[0] + size[0]]
        if not names:
            return torch.empty(tuple(size))
        return torch.stack([tensors.read(name, offset[1:], size[1:]) for name in names])


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a larger tensor: the one that begins at `begin` of its second dimension, which has `whole` elements."""

    name: str
    shape: tuple[int, ...]
    begin: int
    whole: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See Stored."""
        return {self.name: (self.shape[0], self.whole, *self.shape[2:])}

    def read(self, tensors: Reader, offset: Sequence[int], size: Sequence[int]) -> Tensor:
        """See Stored."""
        return tensors.read(self.name, (offset[0], offset[1] + self.begin, *offset[2:]), size)
