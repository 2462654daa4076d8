"""The kinds of stage that the trainer runs, by the name of their work in the job file. No torch here."""

from __future__ import annotations

from finecut.proto import job_pb2, training_pb2

# Those that train, with `model`, `data` and `training`.
TRAINED = ("sft", "dpo", "reward_model", "distill", "ppo", "grpo", "custom")
EXPORT = "export"
ALL = (*TRAINED, EXPORT)


def training_of(stage: job_pb2.Stage) -> training_pb2.TrainingConfig:
    """The stage's training settings; empty where it does not train."""
    work = getattr(stage, stage.WhichOneof("work") or EXPORT)
    return getattr(work, "training", None) or training_pb2.TrainingConfig()
