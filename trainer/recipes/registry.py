"""Which recipe runs which kind of stage."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from finecut.proto import job_pb2
from finecut.proto.config import reinforcement
from finecut.trainer import extensions
from finecut.trainer.config import RecipeConfig, StagePlace
from finecut.trainer.liveness.liveness import Liveness
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import supervised
from finecut.trainer.recipes.config import DistillConfig, DpoConfig, RewardModelConfig, SftConfig
from finecut.trainer.recipes.distill import Distill
from finecut.trainer.recipes.dpo import Dpo
from finecut.trainer.recipes.reward_model import RewardModel
from finecut.trainer.recipes.sft import Sft
from finecut.trainer.recipes.supervised import Recipe, TrainingResult

Run = Callable[[StagePlace, Devices, Liveness], TrainingResult]
"""Trains one stage as one rank; see supervised.run."""


def run_of(job: job_pb2.JobConfig, stage: job_pb2.Stage, locate: Callable[[str], Path]) -> Run:
    """What runs a resolved stage that trains. `locate` finds the artifact behind "@stage"."""
    if reinforcement.samples_itself(stage):
        return _sampling(job, stage, locate)
    return functools.partial(supervised.run, recipe_of(stage))


def _sampling(job: job_pb2.JobConfig, stage: job_pb2.Stage, locate: Callable[[str], Path]) -> Run:
    """The recipes with rollouts. They import Ray, which others do without."""
    from finecut.trainer.evaluate.config import while_training
    from finecut.trainer.recipes import grpo, on_policy_distill, ppo
    from finecut.trainer.rewards.config import RewardConfig
    from finecut.trainer.rl import config as configs

    tasks = while_training(job, stage.name, locate)
    if stage.WhichOneof("work") == "distill":
        distilled = dataclasses.replace(configs.OnPolicyDistillConfig.from_proto(stage.distill), tasks=tasks)
        return functools.partial(on_policy_distill.run, distilled)
    work = getattr(stage, stage.WhichOneof("work") or "")
    rewards = [RewardConfig.from_proto(reward, locate, work.rollout.max_new_tokens) for reward in work.rewards]
    if stage.WhichOneof("work") == "ppo":
        ppo_config = dataclasses.replace(configs.PpoConfig.from_proto(stage.ppo), tasks=tasks)
        return functools.partial(ppo.run, ppo_config, rewards)
    grpo_config = dataclasses.replace(configs.GrpoConfig.from_proto(stage.grpo), tasks=tasks)
    return functools.partial(grpo.run, grpo_config, rewards)


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
    kind = stage.WhichOneof("work") or ""
    work = getattr(stage, kind)
    if kind == "distill":
        return {"teacher": stage.distill.teacher}
    found = {"reference": work.reference_model} if getattr(work, "reference_model", "") else {}
    if kind == "ppo" and (critic := _critic(stage)):
        found["critic"] = critic
    return found


def _critic(stage: job_pb2.Stage) -> str:
    """Where the critic starts: what the job says, else the first reward model, else (empty) the policy."""
    models = [reward.model for reward in stage.ppo.rewards if reward.WhichOneof("source") == "model"]
    return stage.ppo.critic or next(iter(models), "")
