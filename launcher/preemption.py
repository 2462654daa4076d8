"""What SIGTERM means to a run: machines go away soon, so the stages at work write a checkpoint first.

SIGTERM -> notice to the stage's ranks -> they save after the step and stop -> exit code 75 -> `resume` goes on
"""

from rich.console import Console

from finecut.launcher.interrupts import Interrupted
from finecut.launcher.stages import Stopping
from finecut.proto import job_pb2
from finecut.proto.run import RunFolder
from finecut.trainer import stage_kinds
from finecut.trainer.liveness import notice

# Clouds give two minutes, Kubernetes 30 s unless told otherwise; what is left of two minutes is for ending the rest.
_DEADLINE_S = 100.0


class Checkpointed(Interrupted):
    """Stopped by SIGTERM, with a checkpoint: nothing was lost."""

    exit_code = notice.EXIT_PREEMPTED


def stop(job: job_pb2.JobConfig, stopping: Stopping, console: Console) -> bool:
    """Has the stages at work write a checkpoint and stop; False where none does, or one not within the deadline.

    What runs beside them and writes no checkpoint is done again.
    """
    training = {stage.name for stage in job.stages if stage.WhichOneof("work") in stage_kinds.TRAINED}
    folder = RunFolder.of(job)
    # Where no rank has started there is nothing to save.
    asked = {stage for stage in stopping.running & training if folder.ranks(stage).is_dir()}
    if not asked:
        return False
    for stage in sorted(asked):
        console.print(f"SIGTERM: stage {stage} writes a checkpoint, {_DEADLINE_S:g} s at most", highlight=False)
        notice.give(folder.ranks(stage), "SIGTERM to the launcher")
    return stopping.wait_until_ended(asked, _DEADLINE_S)
