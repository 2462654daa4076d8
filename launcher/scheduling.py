"""Which waiting stages get free resources: those that fit, and of them those first that most others wait for. Pure.

Free is what no stage has: what was never taken, what a stage left that has ended, and what a stage at work has given
back (engines that left; see Rollout.allocation). A stage with a range gets as much of it as is free when it starts, and
more where resources are free later that no stage waits for.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from finecut.proto import delivery_pb2, job_pb2
from finecut.proto.config import graph, reinforcement
from finecut.trainer import rank_counts


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
    """A stage to run.

    Attributes:
      share: What it takes; None: all there is, so that nothing runs beside it.
      more_gpus: Numbers of GPUs that it takes instead where they are free, most first.
      grows: Whether it takes them also while it is at work.
    """

    name: str
    needs: frozenset[str] = frozenset()
    share: Share | None = None
    more_gpus: tuple[int, ...] = ()
    grows: bool = False


class Schedule:
    """The stages of one start of a run: waiting, running, done."""

    def __init__(self, tasks: Iterable[Task], whole: Share, done: Iterable[str] = ()) -> None:
        self.done = set(done)
        # With what each has been given.
        self.running: dict[str, Task] = {}
        waiting = [task for task in tasks if task.name not in self.done]
        waits = _chains(waiting)
        self._waiting = {task.name: task for task in sorted(waiting, key=lambda task: -waits[task.name])}
        self._whole = whole
        self._given_back: dict[str, int] = {}

    def start(self) -> Iterator[Task]:
        """Stages to start now, with their share; they count as running from then on.

        Those that others wait for longest go first, then in the job's order. Later ones may go before one that does not
        fit.
        """
        for task in list(self._waiting.values()):
            if task.needs <= self.done and (given := self._given(task)):
                del self._waiting[task.name]
                self.running[task.name] = given
                yield given

    def grow(self) -> Iterator[Task]:
        """Stages at work to which more of their range is given now: what is free, and nobody waits for but for room."""
        if any(task.needs <= self.done for task in self._waiting.values()):
            return
        for name, task in self.running.items():
            if not task.grows or task.share is None:
                continue
            most = task.share.gpus + self._free().gpus
            gpus = next((count for count in task.more_gpus if count <= most), 0)
            if gpus > task.share.gpus:
                self.running[name] = dataclasses.replace(task, share=Share(task.share.cpus, gpus))
                yield self.running[name]

    def end(self, stage: str, succeeded: bool) -> None:
        """A running stage is done, or has failed; then what needs it never starts."""
        del self.running[stage]
        self._given_back.pop(stage, None)
        if succeeded:
            self.done.add(stage)

    def give_back(self, stage: str, num_gpus: int) -> None:
        """A running stage does without so many GPUs of its share; fewer than before: it has them again, or waits for
        them."""
        self._given_back[stage] = num_gpus

    def _given(self, task: Task) -> Task | None:
        """The stage with as much as is free for it; None where that is too little."""
        if not self.running:
            free = self._whole
        elif task.share is None or any(running.share is None for running in self.running.values()):
            return None
        else:
            free = self._free()
        if task.share is None:
            return task
        least = task.share.within(self._whole)
        if least.cpus > free.cpus or least.gpus > free.gpus:
            return None
        gpus = next((count for count in task.more_gpus if count <= free.gpus), task.share.gpus)
        return dataclasses.replace(task, share=Share(task.share.cpus, gpus))

    def _free(self) -> Share:
        taken = [(name, task.share.within(self._whole)) for name, task in self.running.items() if task.share]
        gpus = sum(max(0, share.gpus - self._given_back.get(name, 0)) for name, share in taken)
        return Share(self._whole.cpus - sum(share.cpus for _, share in taken), self._whole.gpus - gpus)


def _chains(tasks: Sequence[Task]) -> dict[str, int]:
    """From each stage on, stages in the longest row of which each waits for the one before.

    `tasks`: what a stage needs stands before it.
    """
    found = {task.name: 1 for task in tasks}
    for task in reversed(tasks):
        for needed in task.needs & found.keys():
            found[needed] = max(found[needed], found[task.name] + 1)
    return found


def tasks(job: job_pb2.JobConfig, order: Iterable[str], whole: Share) -> list[Task]:
    """The stages of a resolved job in its order."""
    stages = {stage.name: stage for stage in job.stages}
    return [
        Task(
            name,
            frozenset(graph.upstream(job, name)),
            _share(stages[name], whole),
            _more_gpus(stages[name]),
            _grows(job, stages[name]),
        )
        for name in order
    ]


def given(job: job_pb2.JobConfig, stage: str, share: Share | None) -> job_pb2.JobConfig:
    """The job as the stage's executor is to see it: with what it was given of its range."""
    found = next(candidate for candidate in job.stages if candidate.name == stage)
    if share is None or not found.resources.HasField("max_gpu_count"):
        return job
    copied = job_pb2.JobConfig.FromString(job.SerializeToString())
    resources = next(candidate for candidate in copied.stages if candidate.name == stage).resources
    resources.gpu_count = share.gpus
    resources.ClearField("max_gpu_count")
    return copied


def _share(stage: job_pb2.Stage, whole: Share) -> Share | None:
    if not stage.HasField("resources"):
        return None
    declared, work = stage.resources, stage.WhichOneof("work")
    all_gpus = 0 if work == "data_prep" else whole.gpus
    if work == "deploy":
        in_cluster = stage.deploy.placement == delivery_pb2.Deploy.CLUSTER
        all_gpus = stage.deploy.replica_count * stage.deploy.tensor_parallel_size if in_cluster else 0
    return Share(declared.cpu_count, declared.gpu_count if declared.HasField("gpu_count") else all_gpus)


def _more_gpus(stage: job_pb2.Stage) -> tuple[int, ...]:
    return rank_counts.gpu_counts(stage)[:-1] if stage.resources.HasField("max_gpu_count") else ()


def _grows(job: job_pb2.JobConfig, stage: job_pb2.Stage) -> bool:
    """Policies do not: their allocation decides who has GPUs."""
    has_range = stage.resources.HasField("max_gpu_count") and not job.cluster.local.HasField("rank_count")
    return has_range and not reinforcement.samples_itself(stage)
