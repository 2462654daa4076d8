"""Writes safetensors files one tensor at a time.

The library's own writer wants every tensor of a file in memory at once. The format is simple enough to stream: the
header's length (8 bytes, little-endian), the header as JSON, then each tensor's bytes in order.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
import torch.distributed
from torch import Tensor

_TYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor before its values are."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Its length in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    folder: Path, file_name: str, specs: Sequence[TensorSpec], values: Iterable[Tensor], max_shard_bytes: int | None
) -> bool:
    """Writes tensors to one file, or to several and an index where they exceed `max_shard_bytes`.

    Collective: every rank goes through `values`, which may gather; only rank 0 writes, and it holds one tensor at a
    time. Returns whether this rank wrote.
    """
    is_writer = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    remaining = iter(values)
    if not is_writer:
        for _ in specs:
            next(remaining)
        return False
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(specs, max_shard_bytes)
    names = _shard_names(file_name, len(shards))
    for name, shard in zip(names, shards, strict=True):
        with open(folder / name, "wb") as file:
            _write_file(file, shard, remaining)
    if len(shards) > 1:
        _write_index(folder / f"{file_name}.index.json", names, shards)
    return True


def _split(specs: Sequence[TensorSpec], max_bytes: int | None) -> list[list[TensorSpec]]:
    """Fills one shard after the other; a tensor larger than the bound has a shard of its own."""
    shards: list[list[TensorSpec]] = [[]]
    for spec in specs:
        size = sum(other.num_bytes for other in shards[-1])
        if max_bytes is not None and shards[-1] and size + spec.num_bytes > max_bytes:
            shards.append([])
        shards[-1].append(spec)
    return shards


def _shard_names(file_name: str, count: int) -> list[str]:
    if count == 1:
        return [file_name]
    stem = file_name.removesuffix(".safetensors")
    return [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def _write_file(file: BinaryIO, specs: Sequence[TensorSpec], values: Iterator[Tensor]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for spec in specs:
        end = begin + spec.num_bytes
        header[spec.name] = {"dtype": _TYPE_NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # tensors start at multiples of 8 bytes, as the library has it
    file.write(len(text).to_bytes(8, "little") + text)
    for spec in specs:
        value = next(values).to(device="cpu", dtype=spec.dtype).contiguous()
        assert tuple(value.shape) == spec.shape, (spec, value.shape)
        file.write(memoryview(value.view(torch.uint8).numpy()).cast("B"))


def _write_index(path: Path, names: Sequence[str], shards: Sequence[Sequence[TensorSpec]]) -> None:
    file_of = {spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard}
    total = sum(spec.num_bytes for shard in shards for spec in shard)
    index = {"metadata": {"total_size": total}, "weight_map": file_of}
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
