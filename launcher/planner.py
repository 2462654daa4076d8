"""What a job will do, worked out from the resolved job alone: waves, inputs, outputs, numbers. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from finecut.proto import data_pb2, delivery_pb2, job_pb2, recipes_pb2, rules_pb2, training_pb2
from finecut.proto.config import graph, waves
from finecut.proto.config.walk import visit
from finecut.proto.run import RunFolder

_Supervised = recipes_pb2.Sft | recipes_pb2.Dpo | recipes_pb2.RewardModel | recipes_pb2.Distill


@dataclass(frozen=True)
class StagePlan:
    """One stage. Example: name "sft", kind "sft", needs ("prepare",), reads ("@prepare", "/models/tiny")."""

    name: str
    kind: str
    needs: tuple[str, ...]
    reads: tuple[str, ...]
    writes: str
    numbers: dict[str, str | int | float]


@dataclass(frozen=True)
class Plan:
    """Stages by wave: a stage needs only stages of earlier waves; those of one wave do not depend on each other."""

    name: str
    root: str
    waves: tuple[tuple[StagePlan, ...], ...]

    @property
    def order(self) -> list[str]:
        """Stage names, each after all it needs."""
        return [stage.name for wave in self.waves for stage in wave]


def plan(job: job_pb2.JobConfig) -> Plan:
    """Plans a resolved, valid job."""
    folder = RunFolder.of(job)
    stages = {stage.name: stage for stage in job.stages}
    return Plan(
        name=job.name,
        root=str(folder.root),
        waves=tuple(tuple(_plan_stage(job, stages[name], folder) for name in wave) for wave in waves(job)),
    )


def stage_kind(stage: job_pb2.Stage) -> str:
    """The stage's work: the name of the field that is set, such as "sft"."""
    kind = stage.WhichOneof("work")
    assert kind, "validation refuses a stage without work"
    return kind


def text(value: str | int | float) -> str:
    """One of a stage's numbers, as people read it."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else value


def _plan_stage(job: job_pb2.JobConfig, stage: job_pb2.Stage, folder: RunFolder) -> StagePlan:
    return StagePlan(
        name=stage.name,
        kind=stage_kind(stage),
        needs=tuple(graph.upstream(job, stage.name)),
        reads=tuple(dict.fromkeys(_reads(stage))),
        writes=str(folder.artifact(stage.name)),
        numbers=_numbers(job, stage),
    )


def _reads(stage: job_pb2.Stage) -> Iterator[str]:
    """Values of every field that points to something that is read, in the order of the contract."""
    for found in visit(stage):
        if found.rule.reference not in (rules_pb2.REFERENCE_UNSPECIFIED, rules_pb2.REFERENCE_OUTPUT):
            yield found.value


def _numbers(job: job_pb2.JobConfig, stage: job_pb2.Stage) -> dict[str, str | int | float]:
    match stage_kind(stage):
        case "data_prep":
            return _data_prep_numbers(stage.data_prep)
        case "sft" | "dpo" | "reward_model" | "distill" | "custom" as kind:
            return _training_numbers(job, getattr(stage, kind))
        case "export":
            return {
                "format": stage.export.Format.Name(stage.export.format),
                "weight_type": stage.export.WeightType.Name(stage.export.weight_type).removeprefix("WEIGHT_"),
                "sample_prompts": len(stage.export.sample_prompts),
            }
        case "deploy":
            return _deploy_numbers(stage.deploy)
        case _:
            return {}


def _deploy_numbers(work: delivery_pb2.Deploy) -> dict[str, str | int | float]:
    numbers: dict[str, str | int | float] = {
        "placement": delivery_pb2.Deploy.Placement.Name(work.placement),
        "replicas": work.replica_count,
        "tensor_parallel_size": work.tensor_parallel_size,
    }
    return numbers | ({"serve_for_seconds": work.serve_for.seconds} if work.HasField("serve_for") else {})


def _data_prep_numbers(work: data_pb2.DataPrep) -> dict[str, str | int | float]:
    return {
        "sources": len(work.sources),
        "block_size": work.packing.block_size,
        "packing": data_pb2.Packing.Mode.Name(work.packing.mode),
        "evaluation_fraction": work.evaluation.fraction,
        "seed": work.seed,
    }


def _training_numbers(job: job_pb2.JobConfig, work: _Supervised) -> dict[str, str | int | float]:
    training, batch = work.training, work.training.batch
    numbers: dict[str, str | int | float] = {
        "method": f"lora, rank {work.model.lora.rank}" if work.model.HasField("lora") else "full",
        "length": _length(training),
        "global_blocks": batch.global_blocks,
        "micro_blocks": batch.micro_blocks,
    }
    if block_size := _block_size(job, work.data):
        numbers["tokens_per_step"] = block_size * batch.global_blocks
    return numbers | {
        "learning_rate": training.optimizer.learning_rate,
        "precision": training_pb2.Precision.Name(training.precision),
        "ranks": job.cluster.local.rank_count if job.cluster.local.HasField("rank_count") else "one a device",
        "seed": training.seed,
    }


def _length(training: training_pb2.TrainingConfig) -> str:
    if training.WhichOneof("length") == "max_steps":
        return f"{training.max_steps:,} steps"
    epochs = training.epochs if training.WhichOneof("length") else 1.0
    return f"{epochs:g} epoch{'' if epochs == 1 else 's'}"


def _block_size(job: job_pb2.JobConfig, data: str) -> int | None:
    """Tokens of a block, where the data is made by this job."""
    return next((s.data_prep.packing.block_size for s in job.stages if f"@{s.name}" == data), None)
