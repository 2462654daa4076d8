"""Rules that concern several fields at once."""

import glob
import json
from collections.abc import Iterator
from pathlib import Path

from finecut.proto import data_pb2, job_pb2, model_pb2, training_pb2
from finecut.proto.config import automatic, delivery, layout, recipes, record_kinds, reinforcement, rewards, shares
from finecut.proto.config.errors import Problem, suggestion

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def check(job: job_pb2.JobConfig) -> Iterator[Problem]:
    """Problems of a resolved job that no single field shows."""
    for index, stage in enumerate(job.stages):
        work = stage.WhichOneof("work")
        path = f"stages[{index}].{work}"
        yield from automatic.check(stage, path)
        yield from shares.check(stage, f"stages[{index}].resources")
        if work in (*recipes.SUPERVISED, *reinforcement.REINFORCEMENT):
            yield from _check_training(job, stage, path)
            yield from recipes.check(stage, path)
        if reinforcement.samples_itself(stage):
            yield from reinforcement.check(job, stage, path)
        if work == "data_prep":
            yield from _check_formats(stage, path)
            yield from _check_records(stage, path)
            yield from record_kinds.check(stage, path)
            yield from _check_mixing(stage, path)
        elif work == "evaluate":
            yield from delivery.check(job, stage, path)
        elif work == "deploy":
            yield from delivery.check_deploy(stage.deploy, path)
    yield from _check_encryption(job)
    yield from rewards.check(job)


def _check_encryption(job: job_pb2.JobConfig) -> Iterator[Problem]:
    """Encryption that would apply to nothing must not look as if it did."""
    works = [getattr(stage, stage.WhichOneof("work")) for stage in job.stages if stage.WhichOneof("work")]
    folders = [work.training.checkpointing.folder for work in works if hasattr(work, "training")]
    if job.storage.HasField("encryption") and not any(folder.startswith("s3://") for folder in folders):
        yield Problem(
            "storage.encryption",
            "says nothing while no stage keeps its checkpoints in S3; set training.checkpointing.folder to an"
            ' "s3://" URL, or use an encrypted local volume and unset it',
        )


def _check_training(job: job_pb2.JobConfig, stage: job_pb2.Stage, path: str) -> Iterator[Problem]:
    """What all recipes share."""
    work = getattr(stage, stage.WhichOneof("work") or "")
    sizes = layout.ModelSizes.from_folder(work.model.path)
    ranks = _layout(job, work.training, has_blocks=not reinforcement.samples_itself(stage))
    yield from layout.check(ranks, sizes, f"{path}.training")
    if work.training.compile and work.training.activation_checkpointing == training_pb2.SELECTIVE:
        yield Problem(
            f"{path}.training.activation_checkpointing",
            "SELECTIVE does nothing in compiled layers, which recompute cheap operations by themselves; use OFF or"
            " FULL, or unset compile",
        )
    for position, target in enumerate(work.model.lora.targets):
        if target not in LORA_TARGETS:
            yield Problem(
                f"{path}.model.lora.targets[{position}]",
                f'"{target}" is not a linear layer of the decoder; {suggestion(target, LORA_TARGETS)}',
            )
    yield from _check_model(work.model, stage.WhichOneof("work") or "", f"{path}.model")
    yield from _check_positions(job, work.model.path, work.data, path)
    yield from record_kinds.check_training(job, stage, path)


def _check_model(model: model_pb2.Model, kind: str, path: str) -> Iterator[Problem]:
    """What training cannot do to a model."""
    if not all(model.added_tokens) or len(set(model.added_tokens)) < len(model.added_tokens):
        yield Problem(f"{path}.added_tokens", "holds an empty token, or one twice; name each once")
    if not model.HasField("lora") or kind == "sft":
        return
    for field in ("added_tokens", "semantic_id_count"):
        if getattr(model, field):
            yield Problem(
                f"{path}.{field}",
                f"adds rows to the vocabulary, which {kind} with lora would leave untrained; unset lora, or add them in"
                " an sft stage and continue from it",
            )


def _layout(job: job_pb2.JobConfig, training: training_pb2.TrainingConfig, has_blocks: bool) -> layout.Layout:
    """Without `rank_count` the number of ranks shows only where the stage runs. Rollouts fit any number of ranks."""
    local, mesh = job.cluster.local, training.parallelism
    any_size = training.batch.micro_blocks * max(1, local.rank_count)
    return layout.Layout(
        world_size=local.rank_count if local.HasField("rank_count") else None,
        shard_size=mesh.shard_size if mesh.HasField("shard_size") else None,
        replicate_size=mesh.replicate_size,
        tensor_parallel_size=mesh.tensor_parallel_size,
        global_blocks=training.batch.global_blocks if has_blocks else any_size,
        micro_blocks=training.batch.micro_blocks,
    )


def _check_positions(job: job_pb2.JobConfig, model: str, data: str, path: str) -> Iterator[Problem]:
    """A block must not be longer than the model has positions."""
    limit = _model_positions(model)
    prepare = next((stage for stage in job.stages if f"@{stage.name}" == data), None)
    if limit is None or prepare is None or prepare.WhichOneof("work") != "data_prep":
        return
    block_size = prepare.data_prep.packing.block_size
    if block_size > limit:
        yield Problem(
            f"{path}.data",
            f"its blocks have {block_size:,} tokens and the model has {limit:,} positions; lower packing.block_size",
        )


def _model_positions(folder: str) -> int | None:
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        return int(config["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_formats(stage: job_pb2.Stage, path: str) -> Iterator[Problem]:
    """Files whose ending names no format need the field."""
    packed = ("", ".gz", ".bz2", ".xz", ".zst")
    endings = (".parquet", *(f".{kind}{pack}" for kind in ("jsonl", "ndjson", "csv") for pack in packed))
    for number, source in enumerate(stage.data_prep.sources):
        if source.format or source.HasField("reader"):
            continue
        for position, pattern in enumerate(source.paths):
            strange = [name for name in glob.glob(pattern, recursive=True) if not name.endswith(endings)]
            if strange and not Path(strange[0]).is_dir():
                yield Problem(
                    f"{path}.sources[{number}].paths[{position}]",
                    f'the ending of "{strange[0]}" names no known format; set format to JSONL, CSV or PARQUET',
                )


def _check_records(stage: job_pb2.Stage, path: str) -> Iterator[Problem]:
    """Fields that say nothing beside others."""
    for number, source in enumerate(stage.data_prep.sources):
        record = source.conversation
        if record.schema == data_pb2.ConversationRecord.ALPACA and record.HasField("messages_field"):
            yield Problem(
                f"{path}.sources[{number}].conversation.messages_field",
                "an Alpaca record has instruction, input and output, and no field of messages; unset it",
            )
    filter = stage.data_prep.filter
    if bool(filter.languages) != bool(filter.language_field):
        set_field, unset_field = ("languages", "language_field")[:: 1 if filter.languages else -1]
        yield Problem(f"{path}.filter.{set_field}", f"says nothing without {unset_field}; set both or neither")
    if filter.HasField("max_tokens") and filter.max_tokens < filter.min_tokens:
        yield Problem(
            f"{path}.filter.max_tokens", f"{filter.max_tokens} is less than min_tokens, {filter.min_tokens}; raise it"
        )


def _check_mixing(stage: job_pb2.Stage, path: str) -> Iterator[Problem]:
    """Shares are shares of the whole: all sources have one, or none."""
    has_weight = [source.WhichOneof("mixing") == "weight" for source in stage.data_prep.sources]
    if any(has_weight) and not all(has_weight):
        yield Problem(
            f"{path}.sources[{has_weight.index(False)}].weight",
            f"is not set, but sources[{has_weight.index(True)}] has one; set weight for all sources or for none",
        )
