"""Which GPUs of a cluster engines have for themselves, and which ranks share theirs. No torch, no Ray."""

from __future__ import annotations

from finecut.proto import job_pb2, rollout_pb2
from finecut.proto.config import UserError, reinforcement


def reserved_for_engines(stage: job_pb2.Stage, num_gpus: int) -> int:
    """GPUs that ranks leave to engines: none where both take turns, or where the stage samples nothing.

    Without `rollout.engine_count`, half of them, in whole engines. Raises UserError where nothing is left for training.
    """
    if not num_gpus or not reinforcement.samples_itself(stage):
        return 0
    rollout: rollout_pb2.Rollout = getattr(stage, stage.WhichOneof("work") or "").rollout
    if rollout.placement != rollout_pb2.Rollout.SPLIT:
        return 0
    size = rollout.tensor_parallel_size
    count = rollout.engine_count if rollout.HasField("engine_count") else max(1, num_gpus // 2 // size)
    if rollout.HasField("allocation"):
        count = rollout.allocation.max_engine_count
        if moves_ranks(stage):  # then this is where they start
            count = rollout.engine_count or rollout.allocation.min_engine_count
    if count * size >= num_gpus:
        raise UserError(
            f"rollout.placement: SPLIT: {count} engines of {size} GPUs leave none of the {num_gpus} GPUs to training;"
            " use fewer or smaller engines, or COLOCATED, where engines and ranks take turns"
        )
    return count * size


def moves_ranks(stage: job_pb2.Stage) -> bool:
    """Whether GPUs move between the stage's ranks and its engines while it runs."""
    if not reinforcement.samples_itself(stage):
        return False
    rollout = getattr(stage, stage.WhichOneof("work") or "").rollout
    return bool(rollout.allocation.HasField("min_rank_count"))
