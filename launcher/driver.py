"""Driving a run from start to end: its lock, its cluster, its workflow, its progress."""

import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from finecut.launcher import interrupts, planner, preemption, progress, runs, scheduling, stages, workflow
from finecut.launcher.executors import Executors, ray_executors
from finecut.launcher.planning import admission
from finecut.launcher.providers import registry
from finecut.launcher.providers.provider import Provider
from finecut.launcher.scheduling import Share
from finecut.launcher.views import page
from finecut.proto import job_pb2
from finecut.proto.run import RunFolder, given_back, granted


@dataclass(frozen=True)
class Machinery:
    """What runs the stages, and where.

    Attributes:
      provider: Makes the provider of a run.
      executors: By kind of stage; used once the provider's cluster is there.
    """

    provider: Callable[[job_pb2.JobConfig, RunFolder], Provider]
    executors: Executors


REAL = Machinery(registry.provider_of, ray_executors())


def log_path(folder: RunFolder) -> Path:
    """Where tracebacks of a run are."""
    return folder.root / "logs" / "launcher.log"


def drive(job: job_pb2.JobConfig, machinery: Machinery, console: Console) -> bool:
    """Starts or continues the run of a resolved job and waits for its end. Shows progress on `console`.

    Returns:
      False if everything was finished before, and nothing was done.

    Raises:
      UserError: The run cannot be opened (see runs.opened), or cannot fit its machines (see admission.check).
      StageError: A stage failed. Started again, the run goes on with it.
      Interrupted: Ctrl-C or SIGTERM; Checkpointed where the stage at work has written a checkpoint for it. The caller
        must end the process by os._exit: threads of stages may still wait.
    """
    folder = RunFolder.of(job)
    admission.check(job)
    try:
        worked = _work(job, machinery, console)
    except workflow.StageError:
        _write_page(folder, console)
        raise
    if worked or not folder.page.is_file():
        _write_page(folder, console)  # now that the lock is free, or the page would call the run "running"
    return worked


def _work(job: job_pb2.JobConfig, machinery: Machinery, console: Console) -> bool:
    order = planner.plan(job).order
    with runs.opened(job) as folder, interrupts.raised():
        provider = machinery.provider(job, folder)
        if all(runs.finished_artifact(job, stage) for stage in order):
            provider.release()  # ranks outlive a killed launcher for a while, and may have finished on what it bought
            return False
        stages.log_to_file(log_path(folder))
        try:
            cluster = provider.plan(job)
            console.print(f"cluster: {cluster}", highlight=False)
            provider.apply(cluster)
            interrupts.arm()
            seen = provider.observe()
            _run_workflow(job, order, Share(seen.cpu_count, seen.gpu_count), machinery.executors, console)
        finally:
            provider.release()
    return True


def _write_page(folder: RunFolder, console: Console) -> None:
    """Writes the run's report. A run that has ended well does not fail for want of one."""
    try:
        page.write(folder.root)
    except Exception as error:
        console.print(f"the report could not be written: {error}", markup=False)
        logging.getLogger("finecut.launcher").error("the report could not be written", exc_info=error)


def _run_workflow(
    job: job_pb2.JobConfig, order: list[str], whole: Share, executors: Executors, console: Console
) -> None:
    folder, stopping = RunFolder.of(job), stages.Stopping()
    follower = progress.Follower(folder, order, progress.view(console))

    def watch(done: threading.Event) -> None:
        try:
            follower.watch(done)
        except BaseException as error:  # set before anything is torn down, so that no stage is blamed for it
            stopping.asked.set()
            if (
                isinstance(error, interrupts.Interrupted)
                and error.is_notice
                and preemption.stop(job, stopping, console)
            ):
                raise preemption.Checkpointed(str(error)) from None
            raise

    work = workflow.Workflow(
        database=folder.root / "workflow.sqlite",
        run_id=runs.identity(job),
        tasks=scheduling.tasks(job, order, whole),
        whole=whole,
        execute=stages.runner(job, executors, stopping),
        is_finished=lambda stage: runs.finished_artifact(job, stage) is not None,
        given_back=lambda stage: given_back.read(folder.stage(stage)),
        grant=lambda task: granted.tell(folder.stage(task.name), task.share.gpus if task.share else 0),
    )
    workflow.run(work, watch)


def resume_command(job: job_pb2.JobConfig) -> str:
    """What a user types to continue a run."""
    program = "bazel run //launcher --" if "BUILD_WORKING_DIRECTORY" in os.environ else os.path.basename(sys.argv[0])
    return f"{program} resume {job.name} --storage_root={job.storage.root}"
