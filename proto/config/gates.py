"""Gates of an evaluation: conditions on what it measures, read before anything runs."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from finecut.proto import delivery_pb2
from finecut.proto.config.errors import suggestion

DEFAULT_CUTOFFS = (1, 5, 10)
_METRIC = r"(?:(?P<task>[a-z][a-z0-9_-]*)\.)?(?P<metric>[A-Za-z][\w,-]*)"
_THRESHOLD = re.compile(rf"{_METRIC}\s*(?P<operator>>=|<=|>|<)\s*(?P<number>[-+]?[\d.]+(?:[eE][-+]?\d+)?)")
_BASELINE = re.compile(rf"{_METRIC}\s+no worse than\s+@(?P<stage>[a-z][a-z0-9_-]*)")


class GateError(ValueError):
    """A gate that says nothing; the text is for the user."""


@dataclass(frozen=True)
class Gate:
    """One condition, such as "quiz.accuracy >= 0.6" or "accuracy no worse than @sft".

    Attributes:
      task: None: the only task that has the metric.
      operator: ">=", ">", "<=" or "<"; None with a baseline.
      stage: Of the baseline, without "@"; None with a number.
    """

    text: str
    task: str | None
    metric: str
    operator: str | None = None
    number: float | None = None
    stage: str | None = None


def parse(text: str) -> Gate:
    """Raises GateError."""
    stripped = text.strip()
    if found := _THRESHOLD.fullmatch(stripped):
        try:
            number = float(found["number"])
        except ValueError:
            raise GateError(f'"{text}": {found["number"]} is not a number') from None
        return Gate(stripped, found["task"], found["metric"], found["operator"], number)
    if found := _BASELINE.fullmatch(stripped):
        return Gate(stripped, found["task"], found["metric"], stage=found["stage"])
    raise GateError(f'"{text}" is not a gate; write "accuracy >= 0.6" or "accuracy no worse than @stage"')


def baselines(evaluate: delivery_pb2.Evaluate) -> Iterator[tuple[int, str]]:
    """The position of each gate with a baseline, and its stage. Gates that cannot be read are left out."""
    for number, text in enumerate(evaluate.gates):
        try:
            gate = parse(text)
        except GateError:
            continue
        if gate.stage:
            yield number, gate.stage


def metrics(task: delivery_pb2.Evaluate.Task) -> tuple[str, ...]:
    """What a task measures; empty where only its run tells."""
    match task.WhichOneof("kind"):
        case "perplexity":
            return ("loss", "perplexity")
        case "generation":
            return ("accuracy",)
        case "win_rate":
            return ("win_rate",)
        case "ranking":
            cutoffs = task.ranking.cutoffs or DEFAULT_CUTOFFS
            return (*(f"{name}_at_{k}" for k in cutoffs for name in ("hit_rate", "ndcg")), "mrr")
        case _:
            return ()


def choose_task(gate: Gate, measured: Mapping[str, tuple[str, ...]]) -> str:
    """The task that the gate is about. Raises GateError where there is none, or several.

    Args:
      measured: Metrics by task; an empty tuple is a task that may measure anything.
    """
    if gate.task is not None and gate.task not in measured:
        raise GateError(f'"{gate.text}": there is no task "{gate.task}"; {suggestion(gate.task, list(measured))}')
    named = measured if gate.task is None else {gate.task: measured[gate.task]}
    found = [task for task, names in named.items() if gate.metric in names]
    if not found:
        found = [task for task, names in named.items() if not names]
    if len(found) == 1:
        return found[0]
    if found:
        raise GateError(f'"{gate.text}": several tasks may have {gate.metric}; write "{found[0]}.{gate.metric}"')
    known = [name for names in named.values() for name in names]
    raise GateError(f'"{gate.text}": no task measures "{gate.metric}"; {suggestion(gate.metric, known)}')
