"""Which numbers of ranks a stage may have. Pure: neither Ray nor torch."""

from __future__ import annotations

from finecut.proto import job_pb2
from finecut.proto.config import UserError, reinforcement
from finecut.trainer import stage_kinds
from finecut.trainer.rl import engine_gpus


def is_valid(stage: job_pb2.Stage, num_ranks: int) -> bool:
    """Whether so many cut the mesh evenly, and the global batch, so that it stays what it is."""
    training = stage_kinds.training_of(stage)
    data_size, left = divmod(num_ranks, training.parallelism.tensor_parallel_size or 1)
    if left or not data_size or data_size % (training.parallelism.replicate_size or 1):
        return False
    if reinforcement.samples_itself(stage):  # samples are shared out among any number
        return True
    return training.batch.global_blocks % (training.batch.micro_blocks * data_size) == 0


def gpu_counts(stage: job_pb2.Stage) -> tuple[int, ...]:
    """Numbers of GPUs that a stage with a range may be given, most first; its fewest always."""
    fewest, most = stage.resources.gpu_count, stage.resources.max_gpu_count
    more = (count for count in range(most, fewest, -1) if _is_useful(stage, count))
    return (*more, fewest)


def _is_useful(stage: job_pb2.Stage, num_gpus: int) -> bool:
    if stage_kinds.training_of(stage).parallelism.HasField("shard_size"):
        return False
    try:
        return is_valid(stage, num_gpus - engine_gpus.reserved_for_engines(stage, num_gpus))
    except UserError:  # its engines would leave none to the ranks
        return False
