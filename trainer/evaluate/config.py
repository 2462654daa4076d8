"""What an evaluate stage is asked to do, as frozen dataclasses. `from_proto` takes resolved messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from finecut.proto import delivery_pb2, job_pb2
from finecut.proto.config import gates, graph
from finecut.proto.config.gates import Gate
from finecut.trainer.rewards.config import ExactMatch, RewardConfig


@dataclasses.dataclass(frozen=True)
class Examples:
    """Where a task's examples come from."""

    folder: Path
    split: str
    # None: all.
    max_examples: int | None


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How answers are sampled; temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Held-out loss."""

    examples: Examples


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The last `next_item_count` ids of each sequence, looked for among the first `cutoffs` of all ids."""

    examples: Examples
    cutoffs: tuple[int, ...]
    next_item_count: int


@dataclasses.dataclass(frozen=True)
class Generation:
    """Answers, judged by verifiers."""

    examples: Examples
    sampling: Sampling
    verifiers: tuple[RewardConfig, ...]


@dataclasses.dataclass(frozen=True)
class WinRate:
    """Answers, compared with an opponent's."""

    examples: Examples
    sampling: Sampling
    opponent: Path
    judge: Path


@dataclasses.dataclass(frozen=True)
class UserTask:
    """A user's function, "package.module:name"."""

    path: str
    data: Path | None


@dataclasses.dataclass(frozen=True)
class Harness:
    """Tasks of lm-eval, from a folder."""

    tasks: tuple[str, ...]
    folder: Path
    apply_chat_template: bool


Task = Perplexity | Ranking | Generation | WinRate | UserTask | Harness


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """An evaluate stage; tasks by name."""

    # "@stage" or a path.
    model: str
    tasks: dict[str, Task]
    gates: tuple[Gate, ...]
    tensor_parallel_size: int
    seed: int

    @classmethod
    def from_proto(cls, proto: delivery_pb2.Evaluate, locate: Callable[[str], Path]) -> EvaluateConfig:
        """From a resolved Evaluate; `locate` finds the artifact behind "@stage"."""
        return cls(
            model=proto.model,
            tasks={task.name: _task(task, proto.seed, locate) for task in proto.tasks},
            gates=tuple(gates.parse(text) for text in proto.gates),
            tensor_parallel_size=proto.tensor_parallel_size,
            seed=proto.seed,
        )


@dataclasses.dataclass(frozen=True)
class WhileTraining:
    """A generation task of an evaluate stage that is measured while the model is trained. `name`: "STAGE.TASK"."""

    name: str
    how: Generation
    every_steps: int


def while_training(job: job_pb2.JobConfig, stage: str, locate: Callable[[str], Path]) -> tuple[WhileTraining, ...]:
    """What is measured of a resolved job's `stage` while it trains."""
    found = []
    for measuring in graph.measuring(job, stage):
        work = measuring.evaluate
        for task in work.tasks:
            how = _task(task, work.seed, locate)
            assert isinstance(how, Generation), "validation refuses other tasks"
            found.append(WhileTraining(f"{measuring.name}.{task.name}", how, work.while_training.every_steps))
    return tuple(found)


def _task(proto: delivery_pb2.Evaluate.Task, seed: int, locate: Callable[[str], Path]) -> Task:
    limit = proto.max_examples if proto.HasField("max_examples") else None
    examples = Examples(locate(proto.data), proto.split, limit)
    match proto.WhichOneof("kind"):
        case "perplexity":
            return Perplexity(examples)
        case "ranking":
            cutoffs = tuple(proto.ranking.cutoffs) or gates.DEFAULT_CUTOFFS
            return Ranking(examples, cutoffs, proto.ranking.next_item_count)
        case "generation":
            how = proto.generation
            verifiers = tuple(RewardConfig.from_proto(reward, locate) for reward in how.verifiers)
            sampling = Sampling(how.max_new_tokens, how.temperature, seed)
            return Generation(examples, sampling, verifiers or (RewardConfig("exact_match", ExactMatch()),))
        case "win_rate":
            rate = proto.win_rate
            sampling = Sampling(rate.max_new_tokens, rate.temperature, seed)
            return WinRate(examples, sampling, locate(rate.opponent), locate(rate.judge))
        case "python":
            return UserTask(proto.python, locate(proto.data) if proto.data else None)
        case _:
            harness = proto.lm_eval
            return Harness(tuple(harness.tasks), Path(harness.folder), harness.apply_chat_template)
