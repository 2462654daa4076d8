"""The trainer's configs as frozen dataclasses: nothing below the recipe boundary sees a protobuf message.

`from_proto` takes *resolved* messages (`finecut.proto.config.resolve`): every default is already filled in.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finecut.proto import model_pb2, training_pb2
from finecut.trainer import extensions
from finecut.trainer.keeping import CheckpointConfig, EncryptionConfig, EvaluationConfig, MetricsConfig
from finecut.trainer.models.lora_config import LoraConfig
from finecut.trainer.ops.kernels import Kernels

_WARMUP_FRACTION = 0.03


class Precision(enum.Enum):
    """Number format of activations and matrix products."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class ActivationCheckpointing(enum.Enum):
    """Which activations of a layer are computed again in the backward pass: none, the cheap ones, or all."""

    OFF = "off"
    SELECTIVE = "selective"
    FULL = "full"


class ScheduleKind(enum.Enum):
    """Shape of the learning rate after warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over time. `warmup_steps` None: 3% of all steps. `custom` takes the place of all others."""

    kind: ScheduleKind
    warmup_steps: int | None
    final_fraction: float
    custom: extensions.Schedule | None = None

    @classmethod
    def from_proto(cls, proto: training_pb2.Schedule) -> ScheduleConfig:
        """From a resolved Schedule."""
        kinds = {
            training_pb2.Schedule.LINEAR: ScheduleKind.LINEAR,
            training_pb2.Schedule.CONSTANT: ScheduleKind.CONSTANT,
        }
        warmup = proto.warmup_steps if proto.HasField("warmup_steps") else None
        custom = extensions.schedule(proto.custom) if proto.HasField("custom") else None
        return cls(kinds.get(proto.kind, ScheduleKind.COSINE), warmup, proto.final_fraction, custom)

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
class ParallelismConfig:
    """The device mesh, and where the optimizer's state lies. `shard_size` None: the ranks that the others leave.

    `is_automatic`: the planner chooses these, micro-batches and checkpointing before anything is laid out.
    """

    replicate_size: int = 1
    shard_size: int | None = None
    tensor_size: int = 1
    offload_optimizer: bool = False
    # Gradients are added up over micro-batches and ranks in BF16 instead of FP32.
    narrow_gradients: bool = False
    is_automatic: bool = False

    @classmethod
    def from_proto(cls, proto: training_pb2.Parallelism) -> ParallelismConfig:
        """From a resolved Parallelism."""
        return cls(
            replicate_size=proto.replicate_size,
            shard_size=proto.shard_size if proto.HasField("shard_size") else None,
            tensor_size=proto.tensor_parallel_size,
            offload_optimizer=proto.offload_optimizer,
            narrow_gradients=proto.gradient_format == training_pb2.Parallelism.GRADIENT_BF16,
            is_automatic=proto.mode == training_pb2.Parallelism.AUTO,
        )


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What the supervised recipes share.

    Exactly one of `max_steps` and `epochs` is set. `global_blocks` make one optimizer step over all ranks;
    `micro_blocks` is what one rank holds at a time. `loss_chunk_tokens` None: as many as fit 1 GiB of logits.
    """

    max_steps: int | None
    epochs: float | None
    global_blocks: int
    micro_blocks: int
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    precision: Precision
    parallelism: ParallelismConfig
    activation_checkpointing: ActivationCheckpointing
    compile_layers: bool
    kernels: Kernels
    loss_chunk_tokens: int | None
    checkpointing: CheckpointConfig
    evaluation: EvaluationConfig
    metrics: MetricsConfig
    hang_timeout_s: float
    seed: int
    deterministic: bool

    @property
    def metrics_every_steps(self) -> int:
        """Steps between records."""
        return self.metrics.every_steps

    @classmethod
    def from_proto(cls, proto: training_pb2.TrainingConfig) -> TrainingConfig:
        """From a resolved TrainingConfig."""
        length = proto.WhichOneof("length")
        precisions = {
            training_pb2.FP32: Precision.FP32,
            training_pb2.BF16: Precision.BF16,
            training_pb2.FP16: Precision.FP16,
        }
        kernels = {
            training_pb2.TORCH: Kernels.TORCH,
            training_pb2.TRITON: Kernels.TRITON,
            training_pb2.APEX: Kernels.APEX,
        }
        checkpointings = {
            training_pb2.SELECTIVE: ActivationCheckpointing.SELECTIVE,
            training_pb2.FULL: ActivationCheckpointing.FULL,
        }
        return cls(
            max_steps=proto.max_steps if length == "max_steps" else None,
            epochs=None if length == "max_steps" else (proto.epochs if length == "epochs" else 1.0),
            global_blocks=proto.batch.global_blocks,
            micro_blocks=proto.batch.micro_blocks,
            optimizer=OptimizerConfig.from_proto(proto.optimizer),
            schedule=ScheduleConfig.from_proto(proto.schedule),
            precision=precisions.get(proto.precision, Precision.AUTO),
            parallelism=ParallelismConfig.from_proto(proto.parallelism),
            activation_checkpointing=checkpointings.get(proto.activation_checkpointing, ActivationCheckpointing.OFF),
            compile_layers=proto.compile,
            kernels=kernels.get(proto.kernels, Kernels.AUTO),
            loss_chunk_tokens=proto.loss.chunk_tokens if proto.loss.HasField("chunk_tokens") else None,
            checkpointing=CheckpointConfig.from_proto(proto.checkpointing),
            evaluation=EvaluationConfig.from_proto(proto.evaluation),
            metrics=MetricsConfig.from_proto(proto.metrics),
            hang_timeout_s=_hang_timeout_s(proto.recovery),
            seed=proto.seed,
            deterministic=proto.deterministic,
        )


def _hang_timeout_s(proto: training_pb2.Recovery) -> float:
    """Without one (a run that an earlier version has stored) nothing counts as a hang."""
    return proto.hang_timeout.ToTimedelta().total_seconds() if proto.HasField("hang_timeout") else math.inf


@dataclasses.dataclass(frozen=True)
class RecipeConfig:
    """What every recipe that trains one model on prepared data has. `lora` None: all parameters are trained."""

    lora: LoraConfig | None
    training: TrainingConfig
    # Tokens, and ids for items, that the model gains.
    added_tokens: tuple[str, ...] = ()
    semantic_id_count: int = 0

    @staticmethod
    def fields_of(model: model_pb2.Model, training: training_pb2.TrainingConfig) -> dict[str, Any]:
        """The fields above, from resolved messages."""
        return {
            "lora": _lora(model.lora) if model.HasField("lora") else None,
            "training": TrainingConfig.from_proto(training),
            "added_tokens": tuple(model.added_tokens),
            "semantic_id_count": model.semantic_id_count,
        }


def _lora(lora: model_pb2.Lora) -> LoraConfig:
    return LoraConfig(
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        targets=tuple(lora.targets),
        rank_stabilized=lora.rank_stabilized,
    )


@dataclasses.dataclass(frozen=True)
class StagePlace:
    """Where one stage reads and writes, and what its checkpoints belong to: `config_fingerprint` and `code_version`.

    `checkpoints` is a folder or a URL, whose objects are encrypted as `encryption` says.
    """

    stage: str
    config_fingerprint: str
    code_version: str
    accepts_other_code: bool
    model: Path
    data: Path
    artifact: Path
    checkpoints: str
    encryption: EncryptionConfig | None
    ranks: Path
    tensorboard: Path
    events: Path
    # Models beside the trained one, by role: "reference", "teacher".
    roles: Mapping[str, Path] = dataclasses.field(default_factory=dict)
