"""Whether the models of deploy stages fit the GPUs that are to serve them, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator

from finecut.launcher.planning import inputs
from finecut.launcher.planning.hardware import Hardware
from finecut.proto import job_pb2
from finecut.proto.config import Problem, UserError
from finecut.trainer.planning import shapes

# Weights are served in 16 bits on GPUs. vLLM takes 0.9 of one, and a tenth of that is the least for all the rest.
_BYTES, _USABLE = 2, 0.9 * 0.9


def problems(job: job_pb2.JobConfig, hardware: Hardware) -> Iterator[Problem]:
    """Of deploy stages on GPUs. Models that are not known before the job runs are left to the stage itself."""
    if not hardware.device.is_gpu:
        return
    for index, stage in enumerate(job.stages):
        if stage.WhichOneof("work") != "deploy":
            continue
        work = stage.deploy
        try:
            parameters = shapes.count(inputs.decoder_of(job, work.model))
        except UserError:
            continue
        needed, size = parameters.stored * _BYTES, work.tensor_parallel_size
        available = hardware.device.memory * _USABLE
        if needed > size * available:
            yield Problem(
                f"stages[{index}].deploy.tensor_parallel_size",
                f"weights of {needed / 2**30:.0f} GiB do not fit {size} x {hardware.device.name}, which leave"
                f" {size * available / 2**30:.0f} GiB for them; use {_fitting(needed / available)} or more, or serve"
                " a smaller model",
            )
        elif work.replica_count * size > hardware.per_host:
            yield Problem(
                f"stages[{index}].deploy.replica_count",
                f"{work.replica_count} replicas of {size} GPUs are more than the {hardware.per_host} of a host; use"
                f" {max(1, hardware.per_host // size)}",
            )


def _fitting(least: float) -> int:
    """The smallest power of two that is enough: heads are divided among GPUs."""
    size = 1
    while size < least:
        size *= 2
    return size
