"""Which stages may start now: those whose needs are done, in the job's order, while what they take fits. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from finecut.proto import job_pb2
from finecut.proto.config import graph


@dataclass(frozen=True)
class Share:
    """A part of the machines: whole cores and GPUs."""

    cpus: int
    gpus: int

    def within(self, whole: "Share") -> "Share":
        """No more than there is, so that a small machine can rehearse a large job."""
        return Share(min(self.cpus, whole.cpus), min(self.gpus, whole.gpus))


@dataclass(frozen=True)
class Task:
    """A stage to run. `share` None: all there is, so that nothing runs beside it."""

    name: str
    needs: frozenset[str] = frozenset()
    share: Share | None = None


class Schedule:
    """The stages of one start of a run: waiting, running, done."""

    def __init__(self, tasks: Iterable[Task], whole: Share, done: Iterable[str] = ()) -> None:
        self.done = set(done)
        self.running: dict[str, Task] = {}
        self._waiting = {task.name: task for task in tasks if task.name not in self.done}
        self._whole = whole

    def start(self) -> Iterator[str]:
        """Stages to start now; they count as running from then on. Later ones may go before one that does not fit."""
        for task in list(self._waiting.values()):
            if task.needs <= self.done and self._fits(task):
                self.running[task.name] = self._waiting.pop(task.name)
                yield task.name

    def end(self, stage: str, succeeded: bool) -> None:
        """A running stage is done, or has failed; then what needs it never starts."""
        del self.running[stage]
        if succeeded:
            self.done.add(stage)

    def _fits(self, task: Task) -> bool:
        if not self.running:
            return True
        shares = [each.share for each in (*self.running.values(), task)]
        if any(share is None for share in shares):
            return False
        taken = [share.within(self._whole) for share in shares if share]
        cpus, gpus = sum(share.cpus for share in taken), sum(share.gpus for share in taken)
        return cpus <= self._whole.cpus and gpus <= self._whole.gpus


def tasks(job: job_pb2.JobConfig, order: Iterable[str], whole: Share) -> list[Task]:
    """The stages of a resolved job in the order in which they are tried."""
    stages = {stage.name: stage for stage in job.stages}
    return [Task(name, frozenset(graph.upstream(job, name)), _share(stages[name], whole)) for name in order]


def _share(stage: job_pb2.Stage, whole: Share) -> Share | None:
    if not stage.HasField("resources"):
        return None
    declared = stage.resources
    all_gpus = 0 if stage.WhichOneof("work") == "data_prep" else whole.gpus
    return Share(declared.cpu_count, declared.gpu_count if declared.HasField("gpu_count") else all_gpus)
