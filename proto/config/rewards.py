"""Rules of what an answer is worth."""

import re
from collections.abc import Iterator

from finecut.proto import job_pb2, rollout_pb2
from finecut.proto.config.errors import Problem

# Rewards that compare with a record's reference.
_COMPARING = ("exact_match", "numeric")


def check(job: job_pb2.JobConfig) -> Iterator[Problem]:
    """Problems of the rewards of every stage."""
    for index, stage in enumerate(job.stages):
        work = stage.WhichOneof("work") or ""
        if work in ("ppo", "grpo"):
            path = f"stages[{index}].{work}"
            recipe = getattr(stage, work)
            yield from _check_names(recipe.rewards, path)
            yield from _check_expressions(recipe.rewards, path)
            yield from _check_references(job, recipe.rewards, recipe.data, path)
            yield from _check_overlong(recipe.rewards, recipe.rollout, path)


def _check_names(rewards: list[rollout_pb2.Reward], path: str) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for number, reward in enumerate(rewards):
        name = reward.name or reward.WhichOneof("source") or ""
        if name in seen:
            yield Problem(
                f"{path}.rewards[{number}].name",
                f'rewards[{seen[name]}] has the name "{name}" too; give one of them another name',
            )
        seen.setdefault(name, number)


def _check_expressions(rewards: list[rollout_pb2.Reward], path: str) -> Iterator[Problem]:
    for number, reward in enumerate(rewards):
        try:
            re.compile(reward.regular_expression)
        except re.error as error:
            yield Problem(
                f"{path}.rewards[{number}].regular_expression",
                f'"{reward.regular_expression}" is no regular expression: {error}; escape what is meant as it stands',
            )


def _check_references(
    job: job_pb2.JobConfig, rewards: list[rollout_pb2.Reward], data: str, path: str
) -> Iterator[Problem]:
    """Where the data are prepared in the same job, it shows whether there is anything to compare with."""
    prepare = next((stage for stage in job.stages if f"@{stage.name}" == data), None)
    if prepare is None or prepare.WhichOneof("work") != "data_prep":
        return
    bare = [
        number
        for number, source in enumerate(prepare.data_prep.sources)
        if source.WhichOneof("record") == "prompt"
        and not (source.prompt.reference_field or source.prompt.verifier_field)
    ]
    for number, reward in enumerate(rewards):
        kind = reward.WhichOneof("source")
        if bare and kind in _COMPARING:
            yield Problem(
                f"{path}.rewards[{number}].{kind}",
                f"compares with a reference, and sources[{bare[0]}] of {data} has none; set its prompt.reference_field",
            )


def _check_overlong(rewards: list[rollout_pb2.Reward], rollout: rollout_pb2.Rollout, path: str) -> Iterator[Problem]:
    for number, reward in enumerate(rewards):
        if reward.WhichOneof("source") != "overlong":
            continue
        if rollout.HasField("multi_turn"):
            yield Problem(
                f"{path}.rewards[{number}].overlong",
                "charges one answer for its length, and rollout.multi_turn has several; unset one of them",
            )
        elif reward.overlong.buffer_tokens > rollout.max_new_tokens:
            yield Problem(
                f"{path}.rewards[{number}].overlong.buffer_tokens",
                f"{reward.overlong.buffer_tokens} is more than rollout.max_new_tokens, {rollout.max_new_tokens}; lower"
                " it",
            )
