"""Traces of runs: work as the metrics say it, without the first step of a start."""

from pathlib import Path

import pytest

from finecut.proto.config import UserError
from finecut.proto.run.events import EventLog
from finecut.trainer.allocation.recording import recorded
from finecut.trainer.allocation.simulation import Step, Trace


def write_step(log: EventLog, step: int, seconds: float, engines: int = 2, **more: float) -> None:
    values = {"engines": engines, "engine_utilisation": 0.5, "ranks": 4, "rank_utilisation": 0.25}
    log.step(step, 9, values | {"step_seconds": seconds} | more)


def test_work_is_that_of_the_steps_as_they_were_done_last(tmp_path: Path) -> None:
    events = tmp_path / "grpo" / "events.jsonl"
    with EventLog(events, "grpo") as log:
        write_step(log, 1, 99.0, **{"start/first_rollout": 50.0})
        write_step(log, 2, 8.0)
        write_step(log, 3, 99.0)
        write_step(log, 2, 99.0, **{"start/first_rollout": 50.0})  # resumed from step 1
        write_step(log, 3, 16.0, engines=3)
        log.message("done")
    trace = recorded(events, engine_gpus=2, move_s=30.0)
    assert trace.steps == (Step(0.5 * 3 * 2 * 16.0, 0.25 * 4 * 16.0),)
    assert (trace.name, trace.num_gpus, trace.move_s) == ("grpo", 3 * 2 + 4, 30.0)
    trace.write(tmp_path / "trace.json")
    assert Trace.read(tmp_path / "trace.json") == trace


def test_a_stage_without_rollouts_is_refused(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl", "sft") as log:
        log.step(1, 2, {"loss": 1.0, "step_seconds": 3.0})
    with pytest.raises(UserError, match="no step says what engines and ranks did"):
        recorded(tmp_path / "events.jsonl", 1, 30.0)
