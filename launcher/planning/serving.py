"""Whether the models of deploy stages fit the GPUs that are to serve them, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finecut.launcher.planning import inputs
from finecut.launcher.planning.hardware import Hardware
from finecut.proto import job_pb2
from finecut.proto.config import Problem, UserError
from finecut.trainer.planning import shapes

# Weights are served in 16 bits on GPUs. vLLM takes 0.9 of one, and a tenth of that is the least for all the rest.
_BYTES, _USABLE = 2, 0.9 * 0.9


def problems(job: job_pb2.JobConfig, machines: Sequence[Hardware]) -> Iterator[Problem]:
    """Of deploy stages, which serve on the launcher's machine: the first of `machines`, unless others are hired.

    Models that are not known before the job runs are left to the stage itself.
    """
    if job.cluster.WhichOneof("provider") == "aws" or not machines or not machines[0].device.is_gpu:
        return
    for stage in job.stages:
        if stage.WhichOneof("work") == "deploy":
            yield from _problems(job, stage, machines[0])


def _problems(job: job_pb2.JobConfig, stage: job_pb2.Stage, machine: Hardware) -> Iterator[Problem]:
    work, path = stage.deploy, f"stages.{stage.name}"
    try:
        parameters = shapes.count(inputs.decoder_of(job, work.model))
    except UserError:
        return
    needed, size = parameters.stored * _BYTES, work.tensor_parallel_size
    available = machine.device.memory * _USABLE
    if needed > size * available:
        yield Problem(
            path,
            f"deploy.tensor_parallel_size: weights of {needed / 2**30:.0f} GiB do not fit {size} x"
            f" {machine.device.name}, which leave {size * available / 2**30:.0f} GiB for them; use"
            f" {_fitting(needed / available)} or more, or serve a smaller model",
        )
    elif work.replica_count * size > machine.per_host:
        yield Problem(
            path,
            f"deploy.replica_count: {work.replica_count} replicas of {size} GPUs are more than the"
            f" {machine.per_host} of a host; use {max(1, machine.per_host // size)}",
        )


def _fitting(least: float) -> int:
    """The smallest power of two that is enough: heads are divided among GPUs."""
    size = 1
    while size < least:
        size *= 2
    return size
