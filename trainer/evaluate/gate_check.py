"""Gates held to what was measured."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

from finecut.proto.config import UserError
from finecut.proto.config.gates import Gate, GateError, choose_task
from finecut.trainer.evaluate.scores import Scores

_OPERATORS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


class GateFailedError(UserError):
    """A model is not as good as the job demands."""


def require(
    gates: Sequence[Gate], found: Sequence[Scores], baselines: Mapping[str, Sequence[Scores]], seed: int
) -> list[str]:
    """Sentences about gates that hold.

    Args:
      baselines: what was measured of each stage that gates name.

    Raises:
      GateFailedError: Names every gate that does not hold.
    """
    held: list[str] = []
    failed: list[str] = []
    for gate in gates:
        ours = chosen(gate, found)
        if gate.stage is None:
            assert gate.operator and gate.number is not None
            is_held = _OPERATORS[gate.operator](ours.value, gate.number)
            said = f"{gate.text}: {ours.metric} is {_told(ours, seed)}"
        else:
            other = chosen(gate, baselines[gate.stage])
            is_held = not ours.is_worse_than(other, seed)
            said = f"{gate.text}: {ours.metric} is {_told(ours, seed)}, of @{gate.stage} {_told(other, seed)}"
        (held if is_held else failed).append(said)
    if failed:
        raise GateFailedError(f"{len(failed)} of {len(gates)} gates failed: {'; '.join(failed)}")
    return held


def chosen(gate: Gate, found: Sequence[Scores]) -> Scores:
    """What the gate is about. Raises UserError where a task did not measure it after all."""
    measured: dict[str, tuple[str, ...]] = {}
    for scores in found:
        measured[scores.task] = (*measured.get(scores.task, ()), scores.metric)
    try:
        task = choose_task(gate, measured)
    except GateError as error:
        raise UserError(f"evaluate.gates: {error}") from None
    return next(scores for scores in found if (scores.task, scores.metric) == (task, gate.metric))


def _told(scores: Scores, seed: int) -> str:
    interval = scores.interval(seed)
    return f"{interval.value:.4g} ({interval.low:.4g} to {interval.high:.4g})"
