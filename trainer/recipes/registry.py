"""Which recipe runs which kind of stage."""

from __future__ import annotations

from finecut.proto import job_pb2
from finecut.trainer import extensions
from finecut.trainer.config import RecipeConfig, SftConfig
from finecut.trainer.recipes.config import DistillConfig, DpoConfig, RewardModelConfig
from finecut.trainer.recipes.distill import Distill
from finecut.trainer.recipes.dpo import Dpo
from finecut.trainer.recipes.reward_model import RewardModel
from finecut.trainer.recipes.sft import Sft
from finecut.trainer.recipes.supervised import Recipe


def recipe_of(stage: job_pb2.Stage) -> Recipe:
    """The recipe of a resolved stage."""
    match stage.WhichOneof("work"):
        case "sft":
            return Sft(SftConfig.from_proto(stage.sft))
        case "dpo":
            return Dpo(DpoConfig.from_proto(stage.dpo))
        case "reward_model":
            return RewardModel(RewardModelConfig.from_proto(stage.reward_model))
        case "distill":
            return Distill(DistillConfig.from_proto(stage.distill))
        case "custom":
            work = stage.custom
            shared = RecipeConfig(**RecipeConfig.fields_of(work.model, work.training))
            return extensions.recipe(work.recipe, shared)
        case kind:
            raise AssertionError(f"{kind} is no supervised recipe")


def roles(stage: job_pb2.Stage) -> dict[str, str]:
    """References to the models that a stage reads beside the one it trains, by role."""
    if stage.dpo.HasField("reference_model"):
        return {"reference": stage.dpo.reference_model}
    if stage.WhichOneof("work") == "distill":
        return {"teacher": stage.distill.teacher}
    return {}
