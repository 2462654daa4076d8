"""The device mesh: replicate x shard x tensor, outermost first.

    replicate  copies of the sharded model; their gradients are summed (HSDP)
    shard      ranks that share one copy of the parameters (FSDP2)
    tensor     ranks that split each matrix and take the same micro-batches

Ranks of one tensor group are neighbours, because they talk most. Every dimension but "shard" is left out at size 1.
"""

from __future__ import annotations

import dataclasses

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from finecut.trainer.config import ParallelismConfig
from finecut.trainer.parallel.process_group import Devices

REPLICATE, SHARD, TENSOR = "replicate", "shard", "tensor"


def arrange(devices: Devices, parallelism: ParallelismConfig) -> Devices:
    """The same ranks on the mesh that the config asks for. Collective; `layout.check` has passed."""
    outer = parallelism.replicate_size * parallelism.tensor_size
    shard_size = parallelism.shard_size or devices.world_size // outer
    assert outer * shard_size == devices.world_size, "layout.check comes first"
    sizes = {REPLICATE: parallelism.replicate_size, SHARD: shard_size, TENSOR: parallelism.tensor_size}
    kept = {name: size for name, size in sizes.items() if size > 1 or name == SHARD}
    mesh = init_device_mesh(devices.device.type, tuple(kept.values()), mesh_dim_names=tuple(kept))
    return dataclasses.replace(devices, mesh=mesh, tensor_size=parallelism.tensor_size)


def data_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The dimensions over which batches differ: what FSDP2 shards, or replicates and shards, over."""
    names = mesh.mesh_dim_names or ()
    return mesh[REPLICATE, SHARD] if REPLICATE in names else mesh[SHARD]


def tensor_mesh(mesh: DeviceMesh) -> DeviceMesh | None:
    """The dimension that splits matrices; None where nothing is split."""
    return mesh[TENSOR] if TENSOR in (mesh.mesh_dim_names or ()) else None


def describe(devices: Devices) -> str:
    """The ranks in words, such as "4 cuda ranks (shard 2 x tensor 2)"."""
    ranks = f"{devices.world_size} {devices.device.type} rank{'s' if devices.world_size > 1 else ''}"
    names = devices.mesh.mesh_dim_names or ()
    if len(names) == 1:
        return ranks
    return f"{ranks} ({' x '.join(f'{name} {size}' for name, size in zip(names, devices.mesh.shape, strict=True))})"
