"""Rules of the recipes that learn from what the policy samples: PPO, GRPO, and distillation with a rollout."""

from collections.abc import Iterator

from finecut.proto import job_pb2, model_pb2, recipes_pb2, rollout_pb2
from finecut.proto.config import layout
from finecut.proto.config.errors import Problem

# They have `model`, `data`, `training`, `rewards` and `rollout`.
REINFORCEMENT = ("ppo", "grpo")
# vLLM takes any lower one for greedy decoding.
_LOWEST_TEMPERATURE = 0.01


def samples_itself(stage: job_pb2.Stage) -> bool:
    """Whether the stage learns from rollouts, so that its data are prompts."""
    work = stage.WhichOneof("work")
    return work in REINFORCEMENT or (work == "distill" and stage.distill.HasField("rollout"))


def check(job: job_pb2.JobConfig, stage: job_pb2.Stage, path: str) -> Iterator[Problem]:
    """Problems of one stage with rollouts."""
    work = getattr(stage, stage.WhichOneof("work") or "")
    yield from _check_model(work.model, f"{path}.model")
    yield from _check_sampling(work, f"{path}.rollout")
    if work.rollout.HasField("allocation"):
        yield from _check_allocation(work.rollout, f"{path}.rollout")
        if work.rollout.allocation.HasField("min_rank_count") and work.training.parallelism.HasField("shard_size"):
            yield Problem(
                f"{path}.training.parallelism.shard_size",
                "fixes the number of ranks, which rollout.allocation.min_rank_count lets change; unset one of them",
            )
    if work.rollout.HasField("evaluation"):
        yield from _check_held_out(job, work, f"{path}.rollout.evaluation")
    if isinstance(work, recipes_pb2.Ppo | recipes_pb2.Grpo):
        yield from _check_minibatches(work, path)
        if work.kl.HasField("target") and not work.kl.coefficient:
            yield Problem(
                f"{path}.kl.target",
                "a weight of 0 stays 0, whatever it is multiplied by; set kl.coefficient above 0, where it starts",
            )
    if isinstance(work, recipes_pb2.Distill) and work.hard_label_weight:
        yield Problem(
            f"{path}.hard_label_weight",
            "there are no labels in the student's own samples; unset it, or unset rollout",
        )


def _check_model(model: model_pb2.Model, path: str) -> Iterator[Problem]:
    for field in ("added_tokens", "semantic_id_count"):
        if getattr(model, field):
            yield Problem(
                f"{path}.{field}",
                "engines load the model as it is, without new rows of the vocabulary; add them in a stage before",
            )
    if model.lora.dropout:
        yield Problem(
            f"{path}.lora.dropout",
            "would change the ratio of probabilities that is learnt from by chance; leave it at 0",
        )


def _check_sampling(work: recipes_pb2.Ppo | recipes_pb2.Grpo | recipes_pb2.Distill, path: str) -> Iterator[Problem]:
    rollout: rollout_pb2.Rollout = work.rollout
    is_truncated = rollout.top_p < 1 or rollout.HasField("top_k")
    if is_truncated and work.training.parallelism.tensor_parallel_size > 1:
        yield Problem(
            f"{path}.{'top_p' if rollout.top_p < 1 else 'top_k'}",
            "ranks that split the vocabulary cannot tell which tokens a truncated distribution keeps; unset it, or"
            " unset training.parallelism.tensor_parallel_size",
        )


def _check_allocation(rollout: rollout_pb2.Rollout, path: str) -> Iterator[Problem]:
    bounds = rollout.allocation
    if rollout.placement != rollout_pb2.Rollout.SPLIT:
        yield Problem(f"{path}.allocation", "engines that take turns with the ranks stay; set placement: SPLIT")
    if bounds.min_engine_count > bounds.max_engine_count:
        yield Problem(
            f"{path}.allocation.min_engine_count",
            f"{bounds.min_engine_count} is more than max_engine_count, {bounds.max_engine_count}; lower it",
        )
    elif rollout.HasField("engine_count") and not (
        bounds.min_engine_count <= rollout.engine_count <= bounds.max_engine_count
    ):
        yield Problem(
            f"{path}.engine_count",
            f"{rollout.engine_count} is not from {bounds.min_engine_count} to {bounds.max_engine_count}, as allocation"
            " says",
        )


def _check_held_out(
    job: job_pb2.JobConfig, work: recipes_pb2.Ppo | recipes_pb2.Grpo | recipes_pb2.Distill, path: str
) -> Iterator[Problem]:
    if isinstance(work, recipes_pb2.Distill):
        yield Problem(path, "measures rewards, and distill has none; unset it")
        return
    temperature = work.rollout.evaluation.temperature
    if 0 < temperature < _LOWEST_TEMPERATURE:
        yield Problem(
            f"{path}.temperature",
            f"{temperature:g} is neither 0, which is greedy, nor at least {_LOWEST_TEMPERATURE}",
        )
    prepare = next((stage for stage in job.stages if f"@{stage.name}" == work.data), None)
    if prepare is not None and prepare.WhichOneof("work") == "data_prep" and not prepare.data_prep.evaluation.fraction:
        yield Problem(path, f'stage "{prepare.name}" holds nothing out; set its evaluation.fraction')


def _check_minibatches(work: recipes_pb2.Ppo | recipes_pb2.Grpo, path: str) -> Iterator[Problem]:
    prompts = work.rollout.prompts_per_step
    if work.minibatches > 0 and prompts % work.minibatches:  # below 1 its rule refuses it
        fits = ", ".join(map(str, layout.divisors(prompts)))
        yield Problem(
            f"{path}.minibatches", f"{work.minibatches} does not divide rollout.prompts_per_step, {prompts}; use {fits}"
        )
