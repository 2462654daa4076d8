"""Checksums of weights that do not depend on how they are sharded, fused or where they lie.

The checksum of a tensor is a sum over its words, modulo 2**64: each word's bits times an odd number that depends on
the word's place in the whole tensor. Being a sum, the checksums of a tensor's parts add up to that of the whole, so
an engine compares its quarter of a fused matrix with the trainer's eighth of a plain one. A changed, moved or missing
word changes the sum. It is no cryptographic hash: it finds mistakes, not forgeries.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

_MODULUS = 1 << 64
# A row is summed in words of 8 bytes where parts of it, split 64 ways, still begin at a word.
_WIDE_BYTES = 8
_BLOCK_WORDS = 64
_WIDE_ROW_BYTES = _BLOCK_WORDS * _WIDE_BYTES
_PACKED_BYTES = 256 << 20  # tensors that are summed together on a GPU
_CHUNK_WORDS = 1 << 22  # bounds each of the few temporaries of a sum on a CPU to 32 MiB
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Multipliers of SplitMix64 (Steele et al., 2014), as signed numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - _MODULUS
_MIX_A = 0xBF58476D1CE4E5B9 - _MODULUS
_MIX_B = 0x94D049BB133111EB - _MODULUS


@dataclasses.dataclass(frozen=True)
class Part:
    """A box of one tensor: all of it, or what one rank, or one row of a fused matrix, has."""

    name: str
    tensor: Tensor
    # Where the box begins in the whole tensor, and the shape of the whole.
    offset: tuple[int, ...]
    whole_shape: tuple[int, ...]

    @staticmethod
    def whole(name: str, tensor: Tensor) -> Part:
        """All of a tensor."""
        return Part(name, tensor, (0,) * tensor.ndim, tuple(tensor.shape))

    def slices(self) -> tuple[slice, ...]:
        """The box as an index into the whole."""
        return tuple(slice(first, first + size) for first, size in zip(self.offset, self.tensor.shape, strict=True))

    @property
    def word_bytes(self) -> int:
        """Bytes of the words that are summed: the same for every part of a tensor."""
        size = self.tensor.element_size()
        return _WIDE_BYTES if self.whole_shape[-1] * size % _WIDE_ROW_BYTES == 0 else size

    @property
    def is_run(self) -> bool:
        """Whether its words lie one after the other in the whole tensor, in whole blocks where they are wide."""
        if not self.tensor.ndim or tuple(self.tensor.shape[1:]) != self.whole_shape[1:]:
            return False
        unit = _WIDE_ROW_BYTES if self.word_bytes == _WIDE_BYTES else self.word_bytes
        return self.tensor.nbytes % unit == 0 and self._first_byte % unit == 0

    @property
    def first_word(self) -> int:
        """Of a run: its place in the whole."""
        return self._first_byte // self.word_bytes

    @property
    def _first_byte(self) -> int:
        return self.offset[0] * math.prod(self.whole_shape[1:]) * self.tensor.element_size()


class Checksums:
    """Adds up parts as they come, on their device, and waits for it once."""

    def __init__(self) -> None:
        self._found: list[tuple[list[str], Tensor]] = []
        self._waiting: dict[int, list[Part]] = {}
        self._waiting_bytes = 0
        # On which the waiting parts were made, and are summed: NCCL's sender changes streams with its buffers.
        self._stream: torch.cuda.Stream | None = None

    def add(self, part: Part) -> None:
        """Takes in what a part, which must stay as it is until `settle`, adds to its tensor's checksum."""
        if not part.tensor.numel():
            self._found.append(([part.name], torch.zeros(1, dtype=torch.int64, device=part.tensor.device)))
        elif not part.is_run:
            self._found.append(([part.name], partial_sum(part)[None]))
        elif not _packs(part.tensor):
            self._found.append(([part.name], _sum_runs(_words(part), [part])))
        else:
            stream = torch.cuda.current_stream(part.tensor.device) if part.tensor.is_cuda else None
            if stream != self._stream:
                self._flush()
                self._stream = stream
            self._waiting.setdefault(part.word_bytes, []).append(part)
            self._waiting_bytes += part.tensor.nbytes
            if self._waiting_bytes > _PACKED_BYTES:
                self._flush()

    def settle(self) -> dict[str, int]:
        """The checksum of each tensor, or what its parts here add to it. Waits for the device."""
        self._flush()
        if self._stream:
            torch.cuda.current_stream().wait_stream(self._stream)
        total: dict[str, int] = {}
        if not self._found:
            return total
        values = iter(torch.cat([sums for _, sums in self._found]).tolist())
        for names, _ in self._found:
            for name in names:
                total[name] = (total.get(name, 0) + next(values)) % _MODULUS
        return total

    def _flush(self) -> None:
        """Packs what waits: a few kernels for many tensors, whose launches would take longer than they do."""
        with torch.cuda.stream(self._stream):  # None: no other
            for parts in self._waiting.values():
                packed = torch.cat([_words(part) for part in parts])
                self._found.append(([part.name for part in parts], _sum_runs(packed, parts)))
        self._waiting, self._waiting_bytes = {}, 0


def tensor_checksum(part: Tensor, whole_shape: tuple[int, ...] | None = None, offset: tuple[int, ...] = ()) -> int:
    """The checksum of a tensor, or what a part adds to that of the whole. Waits for the device.

    Args:
      part: the tensor, or a box out of a larger one. On any device.
      whole_shape: shape of the whole; the part's own when absent.
      offset: where the part begins in the whole; zeros when absent.

    Raises ValueError for a part whose rows begin within a word (a row split more than 64 ways).
    """
    found = Checksums()
    found.add(Part("", part, tuple(offset) or (0,) * part.ndim, tuple(whole_shape or part.shape)))
    return found.settle()[""]


def _packs(tensor: Tensor) -> bool:
    """Whether launches would cost more than a copy does."""
    return tensor.is_cuda


def _words(part: Part) -> Tensor:
    """Of a run, in order."""
    return part.tensor.detach().contiguous().view(-1).view(torch.uint8).view(_INTEGERS[part.word_bytes])


def _sum_runs(words_W: Tensor, parts: Sequence[Part]) -> Tensor:
    """What each of the runs whose words lie side by side adds to its tensor's checksum, [number of parts]."""
    device = words_W.device
    block = _BLOCK_WORDS if parts[0].word_bytes == _WIDE_BYTES else 1  # tensors of wide rows are whole blocks
    blocks = [part.tensor.nbytes // part.word_bytes // block for part in parts]
    ends = list(itertools.accumulate(blocks))
    # A word's place in its tensor, less its place here.
    shifts = [part.first_word - (end - own) * block for part, own, end in zip(parts, blocks, ends, strict=True)]
    counts_P, shift_P = torch.tensor([blocks, shifts], dtype=torch.int64).to(device, non_blocking=True)
    shift_B = shift_P.repeat_interleave(counts_P, output_size=ends[-1])
    start_B = torch.arange(0, ends[-1] * block, block, device=device) + shift_B
    sums_B = _sum(words_W.view(-1, block), start_B, torch.arange(block, device=device))
    until_P = sums_B.cumsum(0)[counts_P.cumsum(0) - 1]
    return until_P.diff(prepend=until_P.new_zeros(1))


def partial_sum(part: Part) -> Tensor:
    """What a box that is no run adds to its tensor's checksum, modulo 2**64: an int64 scalar on its device."""
    tensor, whole_shape, offset = part.tensor, part.whole_shape, part.offset
    word, row_bytes = part.word_bytes, whole_shape[-1] * tensor.element_size()
    column_bytes = offset[-1] * tensor.element_size()
    if column_bytes % word or tensor.shape[-1] * tensor.element_size() % word:
        raise ValueError(f"a part of {tuple(tensor.shape)} at {offset} of {whole_shape} begins within a word")
    bits = tensor.detach().contiguous().view(torch.uint8).view(*tensor.shape[:-1], -1).view(_INTEGERS[word])
    rows = _row_numbers(tensor.shape[:-1], whole_shape[:-1], offset[:-1], tensor.device)
    columns = torch.arange(bits.shape[-1], device=tensor.device) + column_bytes // word
    return _sum(bits.reshape(len(rows), -1), rows * (row_bytes // word), columns).sum()


def _row_numbers(
    shape: tuple[int, ...], whole: tuple[int, ...], offset: tuple[int, ...], device: torch.device
) -> Tensor:
    """For each row of the part, in order, its number among the rows of the whole."""
    numbers = torch.zeros(1, dtype=torch.int64, device=device)
    for size, total, start in zip(shape, whole, offset, strict=True):
        numbers = (numbers[:, None] * total + start + torch.arange(size, device=device)).flatten()
    return numbers


def _sum(bits: Tensor, row_starts: Tensor, columns: Tensor) -> Tensor:
    """Of each row, [rows]."""
    if bits.is_cuda:
        return _fused_sum()(bits, row_starts, columns)
    rows_at_once = max(1, _CHUNK_WORDS // max(1, len(columns)))
    found = [
        _sum_at_once(*chunk, columns)
        for chunk in zip(bits.split(rows_at_once), row_starts.split(rows_at_once), strict=True)
    ]
    return torch.cat(found)


def _sum_at_once(bits: Tensor, row_starts: Tensor, columns: Tensor) -> Tensor:
    return (bits.to(torch.int64) * _odd_numbers(row_starts[:, None] + columns)).sum(1)


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
