"""How each kind of stage runs.

Ray is imported inside functions, because it reads its environment then (see ray_cluster.py); dataprep and trainer are,
because only the workers need them.
"""

from collections.abc import Callable, Mapping

from finecut.proto import job_pb2

Executor = Callable[[job_pb2.JobConfig, str], None]
"""Runs one stage of a resolved job to its artifact, or raises. Returns at once where the artifact is there already."""

Executors = Mapping[str, Executor]
"""By the name of the stage's work, such as "sft"."""


def ray_executors() -> Executors:
    """The table for a running Ray cluster."""
    return {"data_prep": prepare_data, "sft": train, "export": export}


def prepare_data(job: job_pb2.JobConfig, stage: str) -> None:
    """Data preparation, as one task that may use every core."""
    run_task(_data_prep_task, job, stage, num_gpus=0)


def export(job: job_pb2.JobConfig, stage: str) -> None:
    """Export, as one task that may use every core and one GPU where there is one."""
    import ray

    run_task(_trainer_task, job, stage, num_gpus=min(1, int(ray.cluster_resources().get("GPU", 0))))


def train(job: job_pb2.JobConfig, stage: str) -> None:
    """Training: a group of ranks, each an actor; it restarts from its last checkpoint when a member dies."""
    from ray.exceptions import RayTaskError

    from finecut.trainer import worker

    try:
        worker.run_group(job, stage)
    except RayTaskError as error:
        raise root_cause(error) from error


def root_cause(error: BaseException) -> BaseException:
    """The exception that a task raised, out of Ray's wrapping, whose text would be a traceback."""
    from ray.exceptions import RayTaskError

    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def run_task(task: Callable[[bytes, str], None], job: job_pb2.JobConfig, stage: str, num_gpus: int) -> None:
    import ray
    from ray.exceptions import RayTaskError

    # num_cpus also sets the number of threads of numeric libraries in the worker.
    # max_retries=0: a task that dies is a failed stage, which the workflow retries when the user resumes.
    num_cpus = int(ray.cluster_resources()["CPU"])
    remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0)(task)
    try:
        ray.get(remote.remote(job.SerializeToString(), stage))
    except RayTaskError as error:
        raise root_cause(error) from error


def _data_prep_task(job: bytes, stage: str) -> None:
    from finecut.dataprep.stage import run_stage

    run_stage(job_pb2.JobConfig.FromString(job), stage)


def _trainer_task(job: bytes, stage: str) -> None:
    from finecut.trainer.stage import run_stage

    run_stage(job_pb2.JobConfig.FromString(job), stage)
