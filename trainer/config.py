"""The trainer's configs as frozen dataclasses: nothing below the recipe boundary sees a protobuf message.

`from_proto` takes *resolved* messages (`finecut.proto.config.resolve`): every default is already filled in.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from pathlib import Path

from finecut.proto import recipes_pb2, training_pb2
from finecut.trainer.models.lora import LoraConfig

_WARMUP_FRACTION = 0.03


class Precision(enum.Enum):
    """Number format of activations and matrix products."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class ScheduleKind(enum.Enum):
    """Shape of the learning rate after warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over time. `warmup_steps` None: 3% of all steps."""

    kind: ScheduleKind
    warmup_steps: int | None
    final_fraction: float

    @classmethod
    def from_proto(cls, proto: training_pb2.Schedule) -> ScheduleConfig:
        """From a resolved Schedule."""
        kinds = {
            training_pb2.Schedule.LINEAR: ScheduleKind.LINEAR,
            training_pb2.Schedule.CONSTANT: ScheduleKind.CONSTANT,
        }
        warmup = proto.warmup_steps if proto.HasField("warmup_steps") else None
        return cls(kinds.get(proto.kind, ScheduleKind.COSINE), warmup, proto.final_fraction)

    def warmup_of(self, total_steps: int) -> int:
        """Warm-up steps in a run of `total_steps`."""
        return math.ceil(_WARMUP_FRACTION * total_steps) if self.warmup_steps is None else self.warmup_steps


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. `learning_rate` is the peak; `max_gradient_norm` bounds the global gradient norm."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    max_gradient_norm: float

    @classmethod
    def from_proto(cls, proto: training_pb2.Optimizer) -> OptimizerConfig:
        """From a resolved Optimizer."""
        return cls(
            learning_rate=proto.learning_rate,
            beta1=proto.beta1,
            beta2=proto.beta2,
            epsilon=proto.epsilon,
            weight_decay=proto.weight_decay,
            max_gradient_norm=proto.max_gradient_norm,
        )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept. `keep_every_steps` None: none is kept for good."""

    every_steps: int
    keep_last: int
    keep_every_steps: int | None

    @classmethod
    def from_proto(cls, proto: training_pb2.Checkpointing) -> CheckpointConfig:
        """From a resolved Checkpointing."""
        keep_every = proto.keep_every_steps if proto.HasField("keep_every_steps") else None
        return cls(proto.every_steps, proto.keep_last, keep_every)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """When the held-out loss is measured. None: only before the first and after the last step; all blocks."""

    every_steps: int | None
    max_blocks: int | None

    @classmethod
    def from_proto(cls, proto: training_pb2.InTrainingEvaluation) -> EvaluationConfig:
        """From a resolved InTrainingEvaluation."""
        return cls(
            every_steps=proto.every_steps if proto.HasField("every_steps") else None,
            max_blocks=proto.max_blocks if proto.HasField("max_blocks") else None,
        )


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What the supervised recipes share.

    Exactly one of `max_steps` and `epochs` is set. `global_blocks` make one optimizer step over all ranks;
    `micro_blocks` is what one rank holds at a time. `shard_size` None: all ranks. `loss_chunk_tokens` None: as many as
    fit 1 GiB of logits.
    """

    max_steps: int | None
    epochs: float | None
    global_blocks: int
    micro_blocks: int
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    precision: Precision
    shard_size: int | None
    recompute_activations: bool
    loss_chunk_tokens: int | None
    checkpointing: CheckpointConfig
    evaluation: EvaluationConfig
    metrics_every_steps: int
    seed: int
    deterministic: bool

    @classmethod
    def from_proto(cls, proto: training_pb2.TrainingConfig) -> TrainingConfig:
        """From a resolved TrainingConfig."""
        length = proto.WhichOneof("length")
        precisions = {
            training_pb2.FP32: Precision.FP32,
            training_pb2.BF16: Precision.BF16,
            training_pb2.FP16: Precision.FP16,
        }
        return cls(
            max_steps=proto.max_steps if length == "max_steps" else None,
            epochs=None if length == "max_steps" else (proto.epochs if length == "epochs" else 1.0),
            global_blocks=proto.batch.global_blocks,
            micro_blocks=proto.batch.micro_blocks,
            optimizer=OptimizerConfig.from_proto(proto.optimizer),
            schedule=ScheduleConfig.from_proto(proto.schedule),
            precision=precisions.get(proto.precision, Precision.AUTO),
            shard_size=proto.parallelism.shard_size if proto.parallelism.HasField("shard_size") else None,
            recompute_activations=proto.activation_checkpointing == training_pb2.FULL,
            loss_chunk_tokens=proto.loss.chunk_tokens if proto.loss.HasField("chunk_tokens") else None,
            checkpointing=CheckpointConfig.from_proto(proto.checkpointing),
            evaluation=EvaluationConfig.from_proto(proto.evaluation),
            metrics_every_steps=proto.metrics.every_steps,
            seed=proto.seed,
            deterministic=proto.deterministic,
        )


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning. `lora` None: all parameters are trained."""

    lora: LoraConfig | None
    training: TrainingConfig

    @classmethod
    def from_proto(cls, proto: recipes_pb2.Sft) -> SftConfig:
        """From a resolved Sft."""
        lora = _lora(proto) if proto.model.HasField("lora") else None
        return cls(lora=lora, training=TrainingConfig.from_proto(proto.training))


def _lora(proto: recipes_pb2.Sft) -> LoraConfig:
    lora = proto.model.lora
    return LoraConfig(
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        targets=tuple(lora.targets),
        rank_stabilized=lora.rank_stabilized,
    )


@dataclasses.dataclass(frozen=True)
class StagePlace:
    """Where one stage reads and writes. `config_fingerprint` says which config its checkpoints belong to."""

    stage: str
    config_fingerprint: str
    model: Path
    data: Path
    artifact: Path
    checkpoints: Path
    tensorboard: Path
    events: Path
