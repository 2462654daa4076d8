"""Whether a job may start: refused, before anything is bought or started, is what cannot fit the memory of its devices.

Only what exceeds it by more than the plan's own error is refused, and a sentence in `accept_memory_plan` lets it start
all the same. A stage that is finished, or has written a checkpoint, has shown that it fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from finecut.launcher.planning import estimates, hardware, serving
from finecut.launcher.planning.estimates import Estimate
from finecut.proto import job_pb2
from finecut.proto.config import ConfigError, Problem
from finecut.proto.run import RunFolder


def check(job: job_pb2.JobConfig) -> None:
    """Raises ConfigError for a resolved job with stages that cannot fit any one of the machines it may get."""
    if job.accept_memory_plan:
        return
    folder = RunFolder.of(job)
    refused: dict[str, Problem] = {}
    for machines in hardware.choices(job):
        found, _ = estimates.of_job(job, machines)
        for problem in problems(found.values()):
            refused.setdefault(problem.path, problem)
    for problem in serving.problems(job, hardware.choices(job)):
        refused.setdefault(problem.path, problem)
    left = [problem for path, problem in refused.items() if not _has_run(folder, path.removeprefix("stages."))]
    if left:
        raise ConfigError(left)


def problems(found: Iterable[Estimate]) -> Iterator[Problem]:
    """What is short of memory by more than its estimate's error."""
    for estimate in found:
        if estimate.cannot_fit:
            yield Problem(
                f"stages.{estimate.stage}",
                f"{estimate.refusal()}. To start it all the same, say why: --set accept_memory_plan='it fitted before'",
            )


def _has_run(folder: RunFolder, stage: str) -> bool:
    checkpoints = folder.checkpoints(stage)
    has_checkpoints = checkpoints.is_dir() and any(checkpoints.iterdir())
    return has_checkpoints or (folder.artifact(stage) / "manifest.json").is_file()
