"""What stands beside `parallelism.mode: AUTO`: nothing that it chooses."""

from collections.abc import Iterator

from finecut.proto import job_pb2, training_pb2
from finecut.proto.config.errors import Problem
from finecut.proto.config.recipes import SUPERVISED
from finecut.proto.config.walk import rule_of


def check(stage: job_pb2.Stage, path: str) -> Iterator[Problem]:
    """Problems of a resolved stage, whose unset fields have their defaults."""
    work = stage.WhichOneof("work") or ""
    training = getattr(getattr(stage, work, None), "training", None)
    if training is None or training.parallelism.mode != training_pb2.Parallelism.AUTO:
        return
    if work not in SUPERVISED:
        yield Problem(
            f"{path}.training.parallelism.mode", f"AUTO is for {', '.join(SUPERVISED)} in this version; use MANUAL"
        )
        return
    mesh, batch = training.parallelism, training.batch
    chosen = [
        (mesh, "parallelism", ("shard_size", "replicate_size", "tensor_parallel_size", "offload_optimizer")),
        (batch, "batch", ("micro_blocks",)),
        (training, "", ("activation_checkpointing",)),
    ]
    for message, name, fields in chosen:
        for field in fields:
            if _is_set(message, field):
                place = f"{path}.training.{name}.{field}".replace("..", ".")
                yield Problem(place, "is chosen by parallelism.mode: AUTO; unset one of them")


def _is_set(message: training_pb2.TrainingConfig | training_pb2.Parallelism | training_pb2.Batch, name: str) -> bool:
    """To something other than its default."""
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.has_presence and not message.HasField(name):
        return False
    value, default = getattr(message, name), rule_of(field).default
    if field.enum_type and not value:
        return False
    text = field.enum_type.values_by_number[value].name if field.enum_type else str(value).lower()
    return text != default
