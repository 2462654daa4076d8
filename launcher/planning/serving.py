"""Whether the models of deploy stages fit the GPUs that are to serve them, before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from finecut.launcher.planning import inputs
from finecut.launcher.planning.hardware import Hardware
from finecut.launcher.providers.aws import instance_types
from finecut.proto import cluster_pb2, delivery_pb2, job_pb2
from finecut.proto.config import Problem, UserError
from finecut.trainer.planning import gpus, shapes
from finecut.trainer.planning.gpus import Device

# Weights are served in 16 bits on GPUs. vLLM takes 0.9 of one, and a tenth of that is the least for all the rest.
_BYTES, _USABLE = 2, 0.9 * 0.9
_SERVE, _TRAIN = cluster_pb2.NodeGroup.SERVE, cluster_pb2.NodeGroup.TRAIN


@dataclasses.dataclass(frozen=True)
class _Servers:
    """Hosts for replicas: their GPUs, how many a host has, how many hosts there are."""

    device: Device
    per_host: int
    num_hosts: int = 1

    def room(self, size: int) -> int:
        """Replicas of `size` GPUs, each on one host."""
        return self.num_hosts * (self.per_host // size)


def problems(job: job_pb2.JobConfig, machines: Sequence[Hardware]) -> Iterator[Problem]:
    """Of deploy stages: what serves is the launcher's machine, the first of `machines`, or the nodes of its cluster.

    Models and machines that are not known before the job runs are left to the stage itself.
    """
    for stage in job.stages:
        if stage.WhichOneof("work") == "deploy" and (servers := _servers(job, stage.deploy, machines)):
            yield from _problems(job, stage, servers)


def _servers(job: job_pb2.JobConfig, work: delivery_pb2.Deploy, machines: Sequence[Hardware]) -> _Servers | None:
    """None where they are not known, or have no GPUs."""
    is_rented = job.cluster.WhichOneof("provider") == "aws"
    if is_rented and work.placement == delivery_pb2.Deploy.CLUSTER:
        return _rented(job.cluster)
    if is_rented or not machines or not machines[0].device.is_gpu:
        return None
    return _Servers(machines[0].device, machines[0].per_host)


def _rented(cluster: cluster_pb2.Cluster) -> _Servers | None:
    """Nodes of the groups that serve, or else train. The GPUs with the least memory stand for all."""
    groups = [group for group in cluster.node_groups if group.role == _SERVE]
    groups = groups or [group for group in cluster.node_groups if group.role == _TRAIN]
    known = instance_types.BY_NAME
    kinds = [known[name] for group in groups for name in group.instance_types if name in known]
    devices = [device for kind in kinds if (device := gpus.by_name(kind.gpu))]
    if not devices or cluster.aws.HasField("hosts"):
        return None
    return _Servers(
        min(devices, key=lambda device: device.memory),
        min(kind.gpu_count for kind in kinds),
        sum(group.node_count for group in groups),
    )


def _problems(job: job_pb2.JobConfig, stage: job_pb2.Stage, servers: _Servers) -> Iterator[Problem]:
    work, path = stage.deploy, f"stages.{stage.name}"
    try:
        parameters = shapes.count(inputs.decoder_of(job, work.model))
    except UserError:
        return
    needed, size = parameters.stored * _BYTES, work.tensor_parallel_size
    available = servers.device.memory * _USABLE
    if needed > size * available:
        yield Problem(
            path,
            f"deploy.tensor_parallel_size: weights of {needed / 2**30:.0f} GiB do not fit {size} x"
            f" {servers.device.name}, which leave {size * available / 2**30:.0f} GiB for them; use"
            f" {_fitting(needed / available)} or more, or serve a smaller model",
        )
    elif work.replica_count > servers.room(size):
        there = (
            f"{servers.per_host} of a host" if servers.num_hosts == 1 else f"{servers.num_hosts} nodes have room for"
        )
        yield Problem(
            path,
            f"deploy.replica_count: {work.replica_count} replicas of {size} GPUs are more than the {there}; use"
            f" {max(1, servers.room(size))}",
        )


def _fitting(least: float) -> int:
    """The smallest power of two that is enough: heads are divided among GPUs."""
    size = 1
    while size < least:
        size *= 2
    return size
