"""Settings of the supervised recipes, as frozen dataclasses. `from_proto` takes resolved messages."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

from finecut.proto import recipes_pb2
from finecut.trainer import extensions
from finecut.trainer.config import RecipeConfig
from finecut.trainer.ops.distillation import Divergence
from finecut.trainer.teachers.config import TeacherCacheConfig

if TYPE_CHECKING:
    from finecut.trainer.recipes.objective import Objective


class DpoVariant(enum.Enum):
    """Losses over the difference of implicit rewards."""

    SIGMOID = "sigmoid"
    IPO = "ipo"


@dataclasses.dataclass(frozen=True)
class SftConfig(RecipeConfig):
    """Supervised fine-tuning. `loss` None: cross entropy."""

    record_example_losses: bool = False
    loss: Objective | None = None

    @classmethod
    def from_proto(cls, proto: recipes_pb2.Sft) -> SftConfig:
        """From a resolved Sft."""
        shared = cls.fields_of(proto.model, proto.training)
        loss = extensions.objective(proto.loss) if proto.HasField("loss") else None
        return cls(**shared, record_example_losses=proto.record_example_losses, loss=loss)


@dataclasses.dataclass(frozen=True)
class DpoConfig(RecipeConfig):
    """Direct preference optimisation; see Dpo in the contract."""

    beta: float = 0.1
    variant: DpoVariant = DpoVariant.SIGMOID
    label_smoothing: float = 0.0
    length_normalized: bool = False
    precompute_reference: bool = False
    names_reference: bool = False

    @classmethod
    def from_proto(cls, proto: recipes_pb2.Dpo) -> DpoConfig:
        """From a resolved Dpo."""
        return cls(
            **cls.fields_of(proto.model, proto.training),
            beta=proto.beta,
            variant=DpoVariant.IPO if proto.variant == recipes_pb2.Dpo.IPO else DpoVariant.SIGMOID,
            label_smoothing=proto.label_smoothing,
            length_normalized=proto.length_normalized,
            precompute_reference=proto.precompute_reference,
            names_reference=proto.HasField("reference_model"),
        )


@dataclasses.dataclass(frozen=True)
class RewardModelConfig(RecipeConfig):
    """A reward model; `initial_std` is that of the head's weights where the model has none yet."""

    centering: float = 0.0
    initial_std: float = 0.0

    @classmethod
    def from_proto(cls, proto: recipes_pb2.RewardModel) -> RewardModelConfig:
        """From a resolved RewardModel."""
        return cls(
            **cls.fields_of(proto.model, proto.training),
            centering=proto.centering,
            initial_std=proto.model.head.scalar.initial_std,
        )


@dataclasses.dataclass(frozen=True)
class DistillConfig(RecipeConfig):
    """Distillation; `top_k` None: over the whole vocabulary; `teacher_cache` None: the teacher stays in memory."""

    divergence: Divergence = Divergence.FORWARD_KL
    temperature: float = 1.0
    hard_label_weight: float = 0.0
    top_k: int | None = None
    teacher_cache: TeacherCacheConfig | None = None

    @classmethod
    def from_proto(cls, proto: recipes_pb2.Distill) -> DistillConfig:
        """From a resolved Distill."""
        kinds = {
            recipes_pb2.Distill.REVERSE_KL: Divergence.REVERSE_KL,
            recipes_pb2.Distill.JENSEN_SHANNON: Divergence.JENSEN_SHANNON,
        }
        return cls(
            **cls.fields_of(proto.model, proto.training),
            divergence=kinds.get(proto.divergence, Divergence.FORWARD_KL),
            temperature=proto.temperature,
            hard_label_weight=proto.hard_label_weight,
            top_k=proto.top_k if proto.HasField("top_k") else None,
            teacher_cache=TeacherCacheConfig.from_proto(proto.teacher_cache)
            if proto.HasField("teacher_cache")
            else None,
        )
