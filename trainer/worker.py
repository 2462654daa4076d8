"""Runs a training stage as a group of Ray actors, one a rank, and brings the group back when a member dies or hangs.

    run_group (driver)          consumes: a resolved job and a stage; Ray is initialised already
        | serialized job
        v
    _Rank actor x N             each: `stage.run_stage` with torchrun's environment; produces the artifact (rank 0)
        |  reports in <stage>/ranks
        v
    first failure, or no progress for recovery.hang_timeout, ends the attempt: all actors are killed, RestartPolicy
    decides, and the next attempt resumes from the newest checkpoint, on fewer ranks where a node is gone (see
    group_size.py)

The driver imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
import traceback
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from finecut.proto import job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, ray_nodes, user_code
from finecut.proto.run.events import EventLog, follow
from finecut.trainer import group_size, stage_kinds, threads
from finecut.trainer.group_size import GroupSizes, Layout
from finecut.trainer.liveness import diagnosis, notice, reports
from finecut.trainer.liveness.liveness import DRIVEN
from finecut.trainer.liveness.notice import Preempted
from finecut.trainer.recovery import Failure, FailureKind, GroupError, RestartPolicy
from finecut.trainer.rl import split

__all__ = ["GroupError", "Preempted", "preempt", "run_group"]

# Once a rank has failed the others fail too; within this time the most telling failure is known.
_GRACE_S = 5.0
_ROUND_S = 1.0
_RESIZED = "the group grows again"
_GRANTED = "the stage has been given more GPUs"
_DRAINING = "a node is going away"


def run_group(job: job_pb2.JobConfig, stage: str) -> None:
    """Runs `stage` of a resolved job on the cluster's ranks, restarting from checkpoints within training.recovery.

    Raises:
      UserError: From any rank, at once.
      GroupError: The stage failed for good; the message says why.
      Preempted: It was asked to stop (see `preempt`), and has, with a checkpoint.
    """
    recovery = _recovery(job, stage)
    job = user_code.snapshot(job)  # the storage is all that machines share
    sizes = GroupSizes(job, stage)
    while True:
        with sizes.placement(lambda text: _say(job, stage, text)) as (layout, placement):
            failure = _Attempt(job, stage, layout, sizes).run(placement)
        if failure is None:
            return
        if failure.kind is FailureKind.PREEMPTED:
            if _go_on_or_raise(job, stage, failure) in (_GRANTED, split.MOVED):
                sizes = GroupSizes(job, stage)
        else:
            _wait_for_restart(job, stage, failure, recovery)


def preempt(job: job_pb2.JobConfig, stage: str, reason: str) -> None:
    """Asks a stage's group to write a checkpoint after the step and to stop; it raises Preempted then.

    Whoever learns that machines go away calls it: the launcher on SIGTERM, a provider on a spot notice.
    """
    notice.give(RunFolder.of(job).ranks(stage), reason)


def _recovery(job: job_pb2.JobConfig, stage: str) -> RestartPolicy:
    found = next(candidate for candidate in job.stages if candidate.name == stage)
    recovery = stage_kinds.training_of(found).recovery
    backoff_s = recovery.backoff.ToTimedelta().total_seconds() if recovery.HasField("backoff") else 1.0
    return RestartPolicy(recovery.max_restarts, backoff_s)


class _Attempt:
    """One start of the group."""

    def __init__(self, job: job_pb2.JobConfig, stage: str, layout: Layout, sizes: GroupSizes) -> None:
        self._job = job
        self._stage = stage
        self._layout = layout
        self._sizes = sizes
        self._folder = RunFolder.of(job).ranks(stage)
        self._observer: diagnosis.Observer | None = None
        self._nodes: frozenset[str] = frozenset()

    def run(self, placement: PlacementGroup) -> Failure | None:
        """Runs the group once. Returns None when every rank is done, else the failure that explains the others."""
        reports.clear(self._folder)
        self._nodes = group_size.nodes_of(placement)
        kills = _oom_kills()
        actors = [_start(rank, self._layout, placement) for rank in range(self._layout.num_ranks)]
        try:
            address, port = ray.get(actors[0].rendezvous.remote())
            results = {}
            for rank, actor in enumerate(actors):
                environment = {
                    "RANK": str(rank),
                    "LOCAL_RANK": "0",  # Ray shows each actor its own GPU only
                    "WORLD_SIZE": str(self._layout.num_ranks),
                    "MASTER_ADDR": address,
                    "MASTER_PORT": str(port),
                    DRIVEN: "1",
                }
                results[actor.run.remote(self._job.SerializeToString(), self._stage, environment)] = rank
            failure = self._first_failure(results)
        except RayActorError:
            failure = Failure(FailureKind.DEATH, "a training process died while it started")
        finally:
            self._kill(actors)
        if failure and failure.kind is FailureKind.DEATH and _oom_kills() > kills:
            return Failure(failure.kind, f"{failure.message} (the kernel killed a process because memory ran out)")
        return failure

    def _first_failure(self, results: dict[Any, int]) -> Failure | None:
        """Waits until all ranks are done or one fails; then a moment for the others, and picks the most telling one."""
        failures: list[Failure] = []
        pending = list(results)
        while pending and not failures:
            ready, pending = ray.wait(pending, num_returns=1, timeout=_ROUND_S)
            failures += [failure for ref in ready if (failure := _failure_of(ref, results[ref]))]
            if not failures and (hang := self._hang()):
                return hang
            self._give_notices()
        if failures and pending:
            ready, _ = ray.wait(pending, num_returns=len(pending), timeout=_GRACE_S)
            failures += [failure for ref in ready if (failure := _failure_of(ref, results[ref]))]
        return min(failures, key=lambda failure: failure.kind) if failures else None

    def _hang(self) -> Failure | None:
        """Looks whether the group goes forward. Stages other than training do not report."""
        observer = self._observer
        if observer is None:
            found = next(candidate for candidate in self._job.stages if candidate.name == self._stage)
            if found.WhichOneof("work") == "export":
                return None
            recovery = stage_kinds.training_of(found).recovery
            if not recovery.HasField("hang_timeout"):
                return None  # a run that an earlier version has stored
            timeout_s = recovery.hang_timeout.ToTimedelta().total_seconds()
            observer = self._observer = diagnosis.Observer(self._folder, self._layout.num_ranks, timeout_s)
        hang = observer.check()
        if hang is None:
            return None
        observer.dump_stacks_of_frozen()
        time.sleep(_ROUND_S)  # the stacks are being written
        kept = _keep_stacks(self._folder)
        return Failure(FailureKind.HANG, f"{hang}; stacks are in {kept}")

    def _give_notices(self) -> None:
        if notice.read(self._folder) is None:
            if self._sizes.can_grow(self._layout):
                notice.give(self._folder, _RESIZED)
            elif self._sizes.is_granted_more():
                notice.give(self._folder, _GRANTED)
            elif self._nodes & _draining_nodes():
                notice.give(self._folder, _DRAINING)

    def _kill(self, actors: list[Any]) -> None:
        """Ends every rank. A stopped process does not hear Ray, so those on this host are told by the kernel."""
        for actor in actors:
            ray.kill(actor)
        for report in reports.read(self._folder, self._layout.num_ranks).values():
            if report.host == socket.gethostname() and _is_rank(report.process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(report.process, signal.SIGKILL)


def _start(rank: int, layout: Layout, placement: PlacementGroup) -> Any:
    """Starts the actor of one rank in its place. It is killed with its driver, and restarted by nobody but us."""
    options = {
        "num_cpus": layout.num_cpus,
        "num_gpus": layout.num_gpus,
        "max_restarts": 0,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=rank),
    }
    return ray.remote(**options)(_Rank).remote(layout.num_threads)


def _failure_of(ref: Any, rank: int) -> Failure | None:
    try:
        return ray.get(ref)
    except RayActorError:
        reason = "its process crashed or was killed; if memory is short, see the system log for the OOM killer"
        return Failure(FailureKind.DEATH, f"training rank {rank} died: {reason}")
    except RayError as error:
        return Failure(FailureKind.ERROR, f"training rank {rank}: {str(error).strip().splitlines()[-1]}")


def _keep_stacks(folder: Path) -> Path:
    """Moves the stacks to a folder that the next attempt does not clear."""
    kept = folder.parent / "stacks" / time.strftime("%Y%m%d-%H%M%S")
    kept.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.stacks.txt"):
        (kept / path.name).write_bytes(path.read_bytes())
    return kept


def _is_rank(process: int) -> bool:
    """Whether a process id still belongs to a rank's actor, by the title that Ray gave it."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::_Rank")
    except OSError:
        return False


def _oom_kills() -> int:
    """Processes that the kernel has killed on this host for want of memory."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _draining_nodes() -> set[str]:
    """Ids of the nodes that Ray is taking out of service."""
    try:
        return ray_nodes.draining()
    except Exception:  # a part of Ray without promises: without it only the other notices count
        return set()


def _go_on_or_raise(job: job_pb2.JobConfig, stage: str, failure: Failure) -> str:
    """After a stop on notice: returns why, where the group itself wanted it and goes on, else hands the stop on."""
    step, _, reason = failure.message.partition(" ")
    stopped = Preempted(int(step), reason)
    _say(job, stage, str(stopped))
    if reason not in (_RESIZED, _GRANTED, _DRAINING, split.MOVED):
        raise stopped
    return reason


def _wait_for_restart(job: job_pb2.JobConfig, stage: str, failure: Failure, recovery: RestartPolicy) -> None:
    """Waits before the next attempt and says so in the event log; raises when there must be none."""
    events = RunFolder.of(job).events(stage)
    steps = [event.step.step for event in follow(events)[0] if event.WhichOneof("event") == "step"]
    wait_s = recovery.wait_before_restart(failure, steps[-1] if steps else 0)
    restart = f"restart {recovery.restarts} in {wait_s:g} s, from the newest checkpoint"
    _say(job, stage, f"{failure.message}; {restart}")
    time.sleep(wait_s)


def _say(job: job_pb2.JobConfig, stage: str, text: str) -> None:
    with EventLog(RunFolder.of(job).events(stage), stage) as log:
        log.message(text)


class _Rank:
    """One rank of the group, in a process of its own."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        threads.prepare(num_threads)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def rendezvous(self) -> tuple[str, int]:
        """Address of this rank's host and a free port on it, where the ranks meet."""
        with socket.create_server(("", 0)) as server:
            return ray.util.get_node_ip_address(), server.getsockname()[1]

    def run(self, serialized_job: bytes, stage: str, environment: dict[str, str]) -> Failure | None:
        """Runs the stage. Exceptions come back as text: not all of them survive a pickle, and none is for users."""
        os.environ |= environment
        try:
            import torch

            from finecut.trainer.stage import run_stage

            torch.set_num_threads(self._num_threads)
            run_stage(job_pb2.JobConfig.FromString(serialized_job), stage)
        except UserError as error:
            return Failure(FailureKind.USER_ERROR, str(error))
        except Preempted as stopped:
            return Failure(FailureKind.PREEMPTED, f"{stopped.step} {stopped.reason}")
        except Exception as error:
            traceback.print_exc()  # to this worker's log, which the run folder keeps
            return Failure(FailureKind.ERROR, f"{type(error).__name__}: {error}")
        return None
