"""What a run with rollouts did, as a trace: its engines and ranks at work, step by step, from its event log."""

from __future__ import annotations

from pathlib import Path

from finecut.proto import service_pb2
from finecut.proto.config import UserError
from finecut.proto.run.events import follow
from finecut.trainer.allocation.simulation import Step, Trace

_NEEDED = ("engines", "engine_utilisation", "ranks", "rank_utilisation", "step_seconds")


def recorded(events: Path, engine_gpus: int, move_s: float) -> Trace:
    """The trace of a stage whose engines and ranks had GPUs of their own (rollout.placement SPLIT).

    Steps that were done twice count as they were done last. The first after a start is left out: engines are cold, or
    its samples were there. What of a step's work more GPUs would not make faster is not known, and counts as none.

    Args:
      events: the stage's event log.
      engine_gpus: GPUs of an engine; a rank has one.
      move_s: what a move is to cost.

    Raises:
      UserError: No step says what is needed.
    """
    found: dict[int, service_pb2.StepMetrics] = {}
    for event in follow(events)[0]:
        if event.HasField("step"):
            found[event.step.step] = event.step
    steps = [step.values for _, step in sorted(found.items()) if _is_measured(step)]
    if not steps:
        raise UserError(f"{events}: no step says what engines and ranks did; record a stage of grpo or ppo")
    work = tuple(
        Step(
            one["engine_utilisation"] * one["engines"] * engine_gpus * one["step_seconds"],
            one["rank_utilisation"] * one["ranks"] * one["step_seconds"],
        )
        for one in steps
    )
    num_gpus = int(max(one["engines"] * engine_gpus + one["ranks"] for one in steps))
    return Trace(events.parent.name, num_gpus, move_s, work, {"recorded_steps": float(len(work))})


def _is_measured(step: service_pb2.StepMetrics) -> bool:
    is_first = any(name.startswith("start/") for name in step.values)
    return not is_first and all(name in step.values for name in _NEEDED)
