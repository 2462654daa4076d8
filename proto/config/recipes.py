"""Rules of single recipes that concern several of their fields."""

from collections.abc import Iterator

from finecut.proto import job_pb2, recipes_pb2
from finecut.proto.config.errors import Problem

# Recipes that train one model on prepared data: they have `model`, `data` and `training`.
SUPERVISED = ("sft", "dpo", "reward_model", "distill", "custom")


def check(stage: job_pb2.Stage, path: str) -> Iterator[Problem]:
    """Problems of one stage that trains."""
    yield from _check_head(stage, path)
    match stage.WhichOneof("work"):
        case "sft":
            yield from _check_sft(stage.sft, path)
        case "dpo":
            yield from _check_dpo(stage.dpo, path)
        case "distill":
            yield from _check_distill(stage.distill, path)


def _check_head(stage: job_pb2.Stage, path: str) -> Iterator[Problem]:
    work = stage.WhichOneof("work") or ""
    model = getattr(stage, work).model
    if work == "reward_model":
        if model.head.WhichOneof("kind") == "ranking":
            yield Problem(f"{path}.model.head.ranking", "a reward model has a scalar head; unset head, or set scalar")
    elif model.HasField("head"):
        yield Problem(
            f"{path}.model.head",
            f"{work} trains the language-model head, which this would replace; unset it (to rank items, train semantic"
            " ids: model.semantic_id_count)",
        )


def _check_sft(sft: recipes_pb2.Sft, path: str) -> Iterator[Problem]:
    if sft.HasField("loss") and sft.record_example_losses:
        yield Problem(
            f"{path}.record_example_losses", "records the cross entropy, which loss replaces; unset one of them"
        )


def _check_dpo(dpo: recipes_pb2.Dpo, path: str) -> Iterator[Problem]:
    if dpo.variant == recipes_pb2.Dpo.IPO and dpo.label_smoothing:
        yield Problem(f"{path}.label_smoothing", "is defined for SIGMOID; unset it, or use variant: SIGMOID")


def _check_distill(distill: recipes_pb2.Distill, path: str) -> Iterator[Problem]:
    if not distill.HasField("teacher_cache"):
        return
    if distill.HasField("rollout"):
        yield Problem(
            f"{path}.teacher_cache", "keeps what is said of the data, and samples are new each time; unset one of them"
        )
    if not distill.HasField("top_k"):
        yield Problem(f"{path}.top_k", "is needed with teacher_cache: so many tokens are kept a place; 64 is usual")
    if distill.teacher_cache.maker == recipes_pb2.TeacherCache.VLLM and distill.temperature != 1:
        yield Problem(
            f"{path}.temperature",
            f"{distill.temperature:g} cannot be had of vLLM, which knows prompts at temperature 1; leave it at 1, or"
            " set teacher_cache.maker: FORWARD",
        )
