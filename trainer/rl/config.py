"""Settings of the recipes with rollouts, as frozen dataclasses. `from_proto` takes resolved messages."""

from __future__ import annotations

import dataclasses

from finecut.proto import recipes_pb2
from finecut.trainer.config import RecipeConfig
from finecut.trainer.evaluate.config import WhileTraining
from finecut.trainer.recipes.config import DistillConfig
from finecut.trainer.rl.policy_loss import Aggregation
from finecut.trainer.rollout.config import RolloutConfig

# Ziegler et al. (2019) let the controller's weight follow over 10,000 answers.
_KL_HORIZON = 10_000


@dataclasses.dataclass(frozen=True)
class KlConfig:
    """What holds the policy near its reference. `target` in nats a sequence; None: the weight is fixed."""

    coefficient: float
    target: float | None
    in_loss: bool
    horizon: int = _KL_HORIZON

    @classmethod
    def from_proto(cls, proto: recipes_pb2.KlControl) -> KlConfig:
        """From a resolved KlControl."""
        return cls(
            coefficient=proto.coefficient,
            target=proto.target if proto.HasField("target") else None,
            in_loss=proto.place == recipes_pb2.KlControl.IN_LOSS,
        )


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
    """How a batch of rollouts changes the policy; PPO and GRPO share it. `kl` None: no reference is kept."""

    clip_low: float
    clip_high: float
    passes: int
    minibatches: int
    aggregation: Aggregation
    importance_cap: float
    kl: KlConfig | None
    # None: no bound on what a token with a negative advantage costs.
    dual_clip: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutRecipeConfig(RecipeConfig):
    """What every recipe with rollouts has. `group_size`: answers a prompt."""

    rollout: RolloutConfig
    group_size: int
    # Of evaluate stages, measured beside.
    tasks: tuple[WhileTraining, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforcementConfig(RolloutRecipeConfig):
    """What PPO and GRPO share."""

    update: UpdateConfig
    # Answers of the run that rewards may fail on.
    max_unscored_answers: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpoConfig(ReinforcementConfig):
    """Group relative policy optimisation. `max_resamples` None: groups whose rewards are all equal are kept."""

    scale_by_std: bool
    max_resamples: int | None

    @classmethod
    def from_proto(cls, proto: recipes_pb2.Grpo) -> GrpoConfig:
        """From a resolved Grpo."""
        aggregations = {
            recipes_pb2.Grpo.TOKEN_MEAN: Aggregation.TOKEN_MEAN,
            recipes_pb2.Grpo.CONSTANT_LENGTH: Aggregation.CONSTANT_LENGTH,
        }
        return cls(
            **cls.fields_of(proto.model, proto.training),
            rollout=RolloutConfig.from_proto(proto.rollout),
            group_size=proto.group_size,
            update=UpdateConfig(
                clip_low=proto.clip_low,
                clip_high=proto.clip_high,
                passes=proto.passes,
                minibatches=proto.minibatches,
                aggregation=aggregations.get(proto.aggregation, Aggregation.SEQUENCE_MEAN),
                importance_cap=proto.importance_cap,
                kl=KlConfig.from_proto(proto.kl) if proto.HasField("kl") else None,
                dual_clip=proto.dual_clip if proto.HasField("dual_clip") else None,
            ),
            max_unscored_answers=proto.max_unscored_answers,
            scale_by_std=proto.scale_by_std,
            max_resamples=proto.max_resamples if proto.resample_equal_groups else None,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoConfig(ReinforcementConfig):
    """Proximal policy optimisation. `critic_learning_rate` None: the policy's."""

    gamma: float
    gae_lambda: float
    value_clip: float
    critic_learning_rate: float | None
    normalize_advantages: bool

    @classmethod
    def from_proto(cls, proto: recipes_pb2.Ppo) -> PpoConfig:
        """From a resolved Ppo."""
        rate = proto.critic_learning_rate if proto.HasField("critic_learning_rate") else None
        return cls(
            **cls.fields_of(proto.model, proto.training),
            rollout=RolloutConfig.from_proto(proto.rollout),
            group_size=proto.samples_per_prompt,
            update=UpdateConfig(
                clip_low=proto.clip,
                clip_high=proto.clip,
                passes=proto.passes,
                minibatches=proto.minibatches,
                aggregation=Aggregation.TOKEN_MEAN,
                importance_cap=proto.importance_cap,
                kl=KlConfig.from_proto(proto.kl),
                dual_clip=proto.dual_clip if proto.HasField("dual_clip") else None,
            ),
            max_unscored_answers=proto.max_unscored_answers,
            gamma=proto.gamma,
            gae_lambda=proto.gae_lambda,
            value_clip=proto.value_clip,
            critic_learning_rate=rate,
            normalize_advantages=proto.normalize_advantages,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPolicyDistillConfig(RolloutRecipeConfig):
    """Distillation on the student's own samples."""

    distill: DistillConfig

    @classmethod
    def from_proto(cls, proto: recipes_pb2.Distill) -> OnPolicyDistillConfig:
        """From a resolved Distill with a rollout."""
        return cls(
            **cls.fields_of(proto.model, proto.training),
            rollout=RolloutConfig.from_proto(proto.rollout),
            group_size=1,
            distill=DistillConfig.from_proto(proto),
        )
