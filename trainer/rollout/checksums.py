"""Checksums of weights that do not depend on how they are sharded, fused or where they lie.

The checksum of a tensor is a sum over its words, modulo 2**64: each word's bits times an odd number that depends on
the word's place in the whole tensor. Being a sum, the checksums of a tensor's parts add up to that of the whole, so
an engine compares its quarter of a fused matrix with the trainer's eighth of a plain one. A changed, moved or missing
word changes the sum. It is no cryptographic hash: it finds mistakes, not forgeries.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

_MODULUS = 1 << 64
# A row is summed in words of 8 bytes where parts of it, split 64 ways, still begin at a word.
_WIDE_ROW_BYTES = 64 * 8
_CHUNK_WORDS = 1 << 22  # bounds each of the few temporaries of a sum on a CPU to 32 MiB
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Multipliers of SplitMix64 (Steele et al., 2014), as signed numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - _MODULUS
_MIX_A = 0xBF58476D1CE4E5B9 - _MODULUS
_MIX_B = 0x94D049BB133111EB - _MODULUS


def tensor_checksum(part: Tensor, whole_shape: tuple[int, ...] | None = None, offset: tuple[int, ...] = ()) -> int:
    """The checksum of a tensor, or what a part adds to that of the whole. Waits for the device; see `partial_sum`."""
    return settle({"": [partial_sum(part, whole_shape, offset)]})[""]


def settle(sums: Mapping[str, Sequence[Tensor]]) -> dict[str, int]:
    """The checksums that sums of parts add up to, by name. Waits for the device once."""
    on_device = [value for values in sums.values() for value in values]
    if not on_device:
        return dict.fromkeys(sums, 0)
    found = iter(torch.stack(on_device).tolist())
    return {name: sum(next(found) for _ in values) % _MODULUS for name, values in sums.items()}


def partial_sum(part: Tensor, whole_shape: tuple[int, ...] | None = None, offset: tuple[int, ...] = ()) -> Tensor:
    """What a part adds to its tensor's checksum, modulo 2**64: an int64 scalar on the part's device.

    Args:
      part: the tensor, or a box out of a larger one. On any device.
      whole_shape: shape of the whole; the part's own when absent.
      offset: where the part begins in the whole; zeros when absent.

    Raises ValueError for a part whose rows begin within a word (a row split more than 64 ways).
    """
    whole_shape = tuple(whole_shape or part.shape)
    offset = tuple(offset) or (0,) * part.ndim
    if not part.numel():
        return torch.zeros((), dtype=torch.int64, device=part.device)
    row_bytes = whole_shape[-1] * part.element_size()
    word = 8 if row_bytes % _WIDE_ROW_BYTES == 0 else part.element_size()
    column_bytes = offset[-1] * part.element_size()
    if column_bytes % word or part.shape[-1] * part.element_size() % word:
        raise ValueError(f"a part of {tuple(part.shape)} at {offset} of {whole_shape} begins within a word")
    bits = part.detach().contiguous().view(torch.uint8).view(*part.shape[:-1], -1).view(_INTEGERS[word])
    rows = _row_numbers(part.shape[:-1], whole_shape[:-1], offset[:-1], part.device)
    columns = torch.arange(bits.shape[-1], device=part.device) + column_bytes // word
    return _sum(bits.reshape(len(rows), -1), rows * (row_bytes // word), columns)


def _row_numbers(
    shape: tuple[int, ...], whole: tuple[int, ...], offset: tuple[int, ...], device: torch.device
) -> Tensor:
    """For each row of the part, in order, its number among the rows of the whole."""
    numbers = torch.zeros(1, dtype=torch.int64, device=device)
    for size, total, start in zip(shape, whole, offset, strict=True):
        numbers = (numbers[:, None] * total + start + torch.arange(size, device=device)).flatten()
    return numbers


def _sum(bits: Tensor, row_starts: Tensor, columns: Tensor) -> Tensor:
    if bits.is_cuda:
        return _fused_sum()(bits, row_starts, columns)
    rows_at_once = max(1, _CHUNK_WORDS // max(1, len(columns)))
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for first in range(0, len(row_starts), rows_at_once):
        chunk = slice(first, first + rows_at_once)
        total += _sum_at_once(bits[chunk], row_starts[chunk], columns)
    return total


def _sum_at_once(bits: Tensor, row_starts: Tensor, columns: Tensor) -> Tensor:
    return (bits.to(torch.int64) * _odd_numbers(row_starts[:, None] + columns)).sum()


@functools.cache
def _fused_sum() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """One pass over the words, in place of a dozen with temporaries of their size."""
    return torch.compile(_sum_at_once, dynamic=True)


def _odd_numbers(places: Tensor) -> Tensor:
    """A well mixed odd number for each place. Overflow wraps around, which is meant."""
    mixed = places * _GOLDEN
    mixed = (mixed ^ (mixed >> 30)) * _MIX_A
    mixed = (mixed ^ (mixed >> 27)) * _MIX_B
    return mixed | 1


def combine(parts: list[Mapping[str, int]]) -> dict[str, int]:
    """Adds up what each rank found, by tensor name."""
    total: dict[str, int] = {}
    for checksums in parts:
        for name, value in checksums.items():
            total[name] = (total.get(name, 0) + value) % _MODULUS
    return total


def digest(checksums: Mapping[str, int]) -> str:
    """One checksum for all the weights, 16 hexadecimal digits."""
    lines = "\n".join(f"{name} {value:016x}" for name, value in sorted(checksums.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def differing(ours: Mapping[str, int], theirs: Mapping[str, int]) -> list[str]:
    """Names of the tensors that are not equal on both sides, those that one side lacks included; sorted."""
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
