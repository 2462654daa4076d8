"""Runs a training stage as a group of Ray actors, one a rank, and brings the group back when a member dies.

    run_group (driver)          consumes: a resolved job and a stage; Ray is initialised already
        | serialized job
        v
    _Rank actor x N             each: `stage.run_stage` with torchrun's environment; produces the artifact (rank 0)
        |
        v
    first failure ends the attempt: all actors are killed, RestartPolicy decides, the next attempt resumes from the
    newest checkpoint

The driver imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
import os
import socket
import time
import traceback
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from finecut.proto import job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder
from finecut.proto.run.events import EventLog, follow
from finecut.trainer import stage_kinds
from finecut.trainer.recovery import Failure, FailureKind, GroupError, RestartPolicy

__all__ = ["GroupError", "run_group"]

# Once a rank has failed the others fail too; within this time the most telling failure is known.
_GRACE_S = 5.0


def run_group(job: job_pb2.JobConfig, stage: str) -> None:
    """Runs `stage` of a resolved job on this machine's ranks, restarting from checkpoints within training.recovery.

    Raises:
      UserError: From any rank, at once.
      GroupError: The stage failed for good; the message says why.
    """
    layout = _layout(job, stage)
    recovery = _recovery(job, stage)
    placement = placement_group([layout.bundle] * layout.num_ranks, strategy="PACK")
    try:
        ray.get(placement.ready())
        while (failure := _attempt(job, stage, layout, placement)) is not None:
            _wait_for_restart(job, stage, failure, recovery)
    finally:
        remove_placement_group(placement)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Ranks of the group and what each is given: CPU cores reserved, whole GPUs, threads."""

    num_ranks: int
    num_cpus: float
    num_gpus: int
    num_threads: int

    @property
    def bundle(self) -> dict[str, float]:
        """What one rank reserves in Ray."""
        return {"CPU": self.num_cpus} | ({"GPU": float(self.num_gpus)} if self.num_gpus else {})


def _layout(job: job_pb2.JobConfig, stage: str) -> _Layout:
    """One rank a GPU, or one on a machine without; cluster.local.rank_count decides otherwise."""
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 1.0), int(total.get("GPU", 0))
    num_ranks = max(1, gpus)
    if job.cluster.local.HasField("rank_count"):
        num_ranks = job.cluster.local.rank_count
    if gpus and num_ranks > gpus:
        raise UserError(f"cluster.local.rank_count: {num_ranks} ranks need as many GPUs, there are {gpus}; use {gpus}")
    if _work(job, stage) == "export":
        num_ranks = 1  # it is one process's work
    # A core a rank, or what there is: more ranks than cores is slow but lets a laptop rehearse a larger job.
    share = min(1.0, math.floor(1000 * cpus / num_ranks) / 1000)
    return _Layout(num_ranks, share, min(gpus, 1), num_threads=max(1, int(cpus) // num_ranks))


def _recovery(job: job_pb2.JobConfig, stage: str) -> RestartPolicy:
    found = next(candidate for candidate in job.stages if candidate.name == stage)
    recovery = stage_kinds.training_of(found).recovery
    backoff_s = recovery.backoff.ToTimedelta().total_seconds() if recovery.HasField("backoff") else 1.0
    return RestartPolicy(recovery.max_restarts, backoff_s)


def _work(job: job_pb2.JobConfig, stage: str) -> str:
    kinds = {candidate.name: candidate.WhichOneof("work") for candidate in job.stages}
    if kinds.get(stage) not in stage_kinds.ALL:
        raise UserError(f"stage {stage!r} is not one that the trainer runs")
    return kinds[stage]


def _attempt(job: job_pb2.JobConfig, stage: str, layout: _Layout, placement: PlacementGroup) -> Failure | None:
    """Runs the group once. Returns None when every rank is done, else the failure that explains the others."""
    actors = [_start(rank, layout, placement) for rank in range(layout.num_ranks)]
    try:
        address, port = ray.get(actors[0].rendezvous.remote())
        results = {}
        for rank, actor in enumerate(actors):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": "0",  # Ray shows each actor its own GPU only
                "WORLD_SIZE": str(layout.num_ranks),
                "MASTER_ADDR": address,
                "MASTER_PORT": str(port),
            }
            results[actor.run.remote(job.SerializeToString(), stage, environment)] = rank
        return _first_failure(results)
    except RayActorError:
        return Failure(FailureKind.DEATH, "a training process died while it started")
    finally:
        for actor in actors:
            ray.kill(actor)


def _start(rank: int, layout: _Layout, placement: PlacementGroup) -> Any:
    """Starts the actor of one rank in its place. It is killed with its driver, and restarted by nobody but us."""
    options = {
        "num_cpus": layout.num_cpus,
        "num_gpus": layout.num_gpus,
        "max_restarts": 0,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=rank),
    }
    return ray.remote(**options)(_Rank).remote(layout.num_threads)


def _first_failure(results: dict[Any, int]) -> Failure | None:
    """Waits until all ranks are done or one fails; then a moment for the others, and picks the most telling failure."""
    failures: list[Failure] = []
    pending = list(results)
    while pending and not failures:
        ready, pending = ray.wait(pending)
        failures += [failure for ref in ready if (failure := _failure_of(ref, results[ref]))]
    if failures and pending:
        ready, _ = ray.wait(pending, num_returns=len(pending), timeout=_GRACE_S)
        failures += [failure for ref in ready if (failure := _failure_of(ref, results[ref]))]
    return min(failures, key=lambda failure: failure.kind) if failures else None


def _failure_of(ref: Any, rank: int) -> Failure | None:
    try:
        return ray.get(ref)
    except RayActorError:
        reason = "its process crashed or was killed; if memory is short, see the system log for the OOM killer"
        return Failure(FailureKind.DEATH, f"training rank {rank} died: {reason}")
    except RayError as error:
        return Failure(FailureKind.ERROR, f"training rank {rank}: {str(error).strip().splitlines()[-1]}")


def _wait_for_restart(job: job_pb2.JobConfig, stage: str, failure: Failure, recovery: RestartPolicy) -> None:
    """Waits before the next attempt and says so in the event log; raises when there must be none."""
    events = RunFolder.of(job).events(stage)
    steps = [event.step.step for event in follow(events)[0] if event.WhichOneof("event") == "step"]
    wait_s = recovery.wait_before_restart(failure, steps[-1] if steps else 0)
    with EventLog(events, stage) as log:
        log.message(f"{failure.message}; restart {recovery.restarts} in {wait_s:g} s, from the newest checkpoint")
    time.sleep(wait_s)


class _Rank:
    """One rank of the group, in a process of its own."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        os.environ["OMP_NUM_THREADS"] = str(num_threads)  # before torch is imported, which reads it
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
        except Exception as error:
            traceback.print_exc()  # to this worker's log, which the run folder keeps
            return Failure(FailureKind.ERROR, f"{type(error).__name__}: {error}")
        return None
