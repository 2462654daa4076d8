"""The process group of a training run: torchrun's environment, or one process of its own.

One process makes a group too, so that every recipe has one code path: the same sharding, the same reductions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from finecut.proto.config import UserError

T = TypeVar("T")

_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Origin: PyTorch's default for NCCL is 10 minutes and for gloo 30; saving a large model to slow disks takes longer.
_TIMEOUT = datetime.timedelta(minutes=30)


@dataclasses.dataclass(frozen=True)
class Devices:
    """This rank's place in the group, its device, and the mesh of all ranks (see `mesh.arrange`).

    `tensor_size` ranks that are neighbours make one data rank: they take the same batches and split each matrix.
    """

    rank: int
    world_size: int
    device: torch.device
    mesh: DeviceMesh
    tensor_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which part of a batch this rank takes."""
        return self.rank // self.tensor_size

    @property
    def data_size(self) -> int:
        """Number of parts of a batch."""
        return self.world_size // self.tensor_size

    def sum_over_data(self, *values: float) -> list[float]:
        """Sums each value over the parts of a batch, in FP64; ranks of one part hold the same. Collective."""
        return [total / self.tensor_size for total in self.sum(*values)]

    def sum(self, *values: float) -> list[float]:
        """Sums each value over all ranks, in FP64. Collective; every rank gets the same result."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def max(self, value: float) -> float:
        """Largest value over all ranks. Collective."""
        largest = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return float(largest)

    def from_main(self, value: T) -> T:
        """Rank 0's value, on every rank. Collective."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, on every rank. Collective."""
        shares: list[T | None] = [None] * self.world_size
        dist.all_gather_object(shares, value)
        return shares  # type: ignore[return-value]

    def barrier(self) -> None:
        """Waits for all ranks."""
        dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)


@contextlib.contextmanager
def connect() -> Iterator[Devices]:
    """Joins the group that the environment describes (torchrun's variables), or forms a group of one.

    gloo on CPUs, NCCL on GPUs (with gloo for what stays on the host). Raises UserError when only some of torchrun's
    variables are set.
    """
    missing = [name for name in _TORCHRUN_VARIABLES if name not in os.environ]
    if missing and len(missing) < len(_TORCHRUN_VARIABLES) and "RANK" in os.environ:
        raise UserError(f"RANK is set but {', '.join(missing)} is not: start ranks with torchrun, or unset RANK")
    alone = bool(missing)
    rank = 0 if alone else int(os.environ["RANK"])
    world_size = 1 if alone else int(os.environ["WORLD_SIZE"])
    device = _device(0 if alone else int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=dist.HashStore() if alone else None,
        init_method=None if alone else "env://",
        rank=rank,
        world_size=world_size,
        timeout=_TIMEOUT,
    )
    try:
        yield Devices(rank, world_size, device, init_device_mesh(device.type, (world_size,), mesh_dim_names=("shard",)))
    finally:
        dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"this host has {torch.cuda.device_count()} visible GPUs but local rank {local_rank} asks for one more;"
            " start at most one rank a GPU"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def use_deterministic_kernels(deterministic: bool) -> None:
    """Chooses deterministic kernels, or the fastest ones, for the whole process."""
    if deterministic:
        # cuBLAS reads it when it is first used; torch refuses deterministic matrix products without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
