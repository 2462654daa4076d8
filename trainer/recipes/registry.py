"""Which recipe runs which kind of stage."""

from __future__ import annotations

from finecut.proto import job_pb2
from finecut.trainer.config import SftConfig
from finecut.trainer.recipes.sft import Sft
from finecut.trainer.recipes.supervised import Recipe


def recipe_of(stage: job_pb2.Stage) -> Recipe:
    """The recipe of a resolved stage."""
    match stage.WhichOneof("work"):
        case "sft":
            return Sft(SftConfig.from_proto(stage.sft))
        case kind:
            raise AssertionError(f"{kind} is no supervised recipe")


def roles(stage: job_pb2.Stage) -> dict[str, str]:
    """References to the models that a stage reads beside the one it trains, by role."""
    return {}
