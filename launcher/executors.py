"""How each kind of stage runs.

Ray is imported inside functions, because it reads its environment then (see ray_cluster.py); dataprep and trainer are,
because only the workers need them.
"""

from collections.abc import Callable, Mapping

from finecut.proto import job_pb2
from finecut.proto.run import node_roles
from finecut.trainer import stage_kinds

Executor = Callable[[job_pb2.JobConfig, str], None]
"""Runs one stage of a resolved job to its artifact, or raises. Returns at once where the artifact is there already."""

Executors = Mapping[str, Executor]
"""By the name of the stage's work, such as "sft"."""


class ExecutorError(RuntimeError):
    """A stage ended without its artifact. The message is a sentence for the user."""


def ray_executors() -> Executors:
    """The table for a running Ray cluster."""
    return {"data_prep": prepare_data, "deploy": deploy} | {kind: train for kind in stage_kinds.ALL}


def prepare_data(job: job_pb2.JobConfig, stage: str) -> None:
    """Data preparation: a task without a core of its own, which has Ray Data use them all."""
    run_task(_data_prep_task, job, stage, node_roles.DATA)


def train(job: job_pb2.JobConfig, stage: str) -> None:
    """The trainer's stages: a group of ranks, each an actor; it restarts from its last checkpoint when one dies."""
    from finecut.trainer import worker

    try:
        worker.run_group(job, stage)
    except (worker.GroupError, worker.Preempted) as error:
        raise ExecutorError(str(error)) from error


def deploy(job: job_pb2.JobConfig, stage: str) -> None:
    """Serving: in this process, because an endpoint may outlive the cluster."""
    from finecut.trainer.serving import deploy, in_cluster

    try:
        deploy.run_deploy(job, stage)
    except in_cluster.EndpointError as error:
        raise ExecutorError(str(error)) from error


def run_task(
    task: Callable[[bytes, str], None], job: job_pb2.JobConfig, stage: str, role: str = node_roles.TRAIN
) -> None:
    """Runs a function of a serialized job and a stage as a Ray task on a node of a role; raises what it raises."""
    import ray
    from ray.exceptions import RayTaskError, WorkerCrashedError

    # num_cpus=0: what the task starts waits for cores, and would wait for ever for those that the task holds.
    # max_retries=0: a task that dies is a failed stage, which is tried again when the user resumes.
    asked = node_roles.asked(role, ray.cluster_resources())
    remote = ray.remote(num_cpus=0, max_retries=0, resources=asked)(task)
    try:
        ray.get(remote.remote(job.SerializeToString(), stage))
    except RayTaskError as error:
        # Ray's own exception has a traceback for its text; the one that the task raised is its cause.
        raise error.cause if isinstance(error.cause, BaseException) else error from error
    except WorkerCrashedError as error:
        reason = "its process crashed or was killed; if memory is short, see the system log for the OOM killer"
        raise ExecutorError(reason) from error


def _data_prep_task(job: bytes, stage: str) -> None:
    from finecut.dataprep.stage import run_stage

    run_stage(job_pb2.JobConfig.FromString(job), stage)
