"""A weight-transfer backend for vLLM through memory that two processes of one host share. For engines on CPUs.

vLLM's own backends need GPUs (NCCL, CUDA IPC). The sender fills a file in memory with a bucket of tensors; each worker
maps the file, loads the tensors and lets it go.

    sender    bucket file: [tensor 0 | tensor 1 | ...], 64-byte aligned
       | update_info: path, and name, type, shape, offset of each tensor
       v
    worker    maps the file, model.load_weights(views of it)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 64
_MEMORY_FOLDER = Path("/dev/shm")


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Tensors in one file; the fields go over the wire as they are."""

    path: str
    num_bytes: int
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    offsets: list[int]


def fill_buckets(tensors: Iterable[tuple[str, Tensor]], bucket_bytes: int) -> Iterator[Bucket]:
    """Packs the tensors into files of at most `bucket_bytes` each; a larger tensor gets a file of its own.

    A bucket's file lives until the next one is asked for: its receiver must be done with it by then.
    """
    waiting: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        if waiting and size + tensor.nbytes > bucket_bytes:
            with _bucket(waiting) as bucket:
                yield bucket
            waiting, size = [], 0
        waiting.append((name, tensor))
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    if waiting:
        with _bucket(waiting) as bucket:
            yield bucket


@contextlib.contextmanager
def _bucket(tensors: list[tuple[str, Tensor]]) -> Iterator[Bucket]:
    offsets, size = [], 0
    for _, tensor in tensors:
        offsets.append(size)
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    folder = _MEMORY_FOLDER if os.access(_MEMORY_FOLDER, os.W_OK) else None
    handle, path = tempfile.mkstemp(prefix="finecut_weights_", dir=folder)
    try:
        os.truncate(handle, size)
        os.close(handle)
        memory = _map(path, size)
        for (_, tensor), offset in zip(tensors, offsets, strict=True):
            memory[offset : offset + tensor.nbytes] = tensor.view(-1).view(torch.uint8)
        yield Bucket(
            path=path,
            num_bytes=size,
            names=[name for name, _ in tensors],
            dtype_names=[str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors],
            shapes=[list(tensor.shape) for _, tensor in tensors],
            offsets=offsets,
        )
    finally:
        os.unlink(path)


def read_bucket(bucket: Bucket) -> list[tuple[str, Tensor]]:
    """The tensors of a bucket, as views of its memory. Raises FileNotFoundError on another host than the sender's."""
    memory = _map(bucket.path, bucket.num_bytes)
    tensors = []
    for name, type_name, shape, offset in zip(
        bucket.names, bucket.dtype_names, bucket.shapes, bucket.offsets, strict=True
    ):
        dtype = getattr(torch, type_name)
        num_bytes = dtype.itemsize * torch.Size(shape).numel()
        tensors.append((name, memory[offset : offset + num_bytes].view(dtype).view(shape)))
    return tensors


def _map(path: str, num_bytes: int) -> Tensor:
    return torch.from_file(path, shared=True, size=num_bytes, dtype=torch.uint8)


def payload(bucket: Bucket) -> dict[str, Any]:
    """The update_info of a bucket."""
    return dataclasses.asdict(bucket)
