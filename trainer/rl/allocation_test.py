"""Engines come while ranks wait for samples and leave while they wait for ranks; every sample is trained on once."""

import time
from pathlib import Path

import pytest

from finecut.proto.run import RunFolder
from finecut.trainer.allocation.recording import recorded
from finecut.trainer.rl import split, testing
from finecut.trainer.rl.allocation import Allocation
from finecut.trainer.rl.learner import Learner
from finecut.trainer.rl.split import Split
from finecut.trainer.rollout.balancing import Load
from finecut.trainer.rollout.config import AllocationConfig
from finecut.trainer.rollout.fleet import Fleet
from finecut.trainer.stage import run_stage

pytest_plugins = ["finecut.trainer.rl.testing_fixtures"]
STEPS, SLOW_FROM, PROMPTS, GROUP = 7, 4, 4, 2


class Engines:
    """A fleet without engines, in a cluster with room for `room` of them."""

    def __init__(self, room: int) -> None:
        self.num_engines, self.room = 1, room

    def has_room(self, num_engines: int) -> bool:
        return num_engines <= self.room

    def resize(self, num_engines: int) -> None:
        self.num_engines = num_engines


def test_gpus_are_given_back_to_other_stages_and_claimed_before_engines_start() -> None:
    fleet, told, kept = Engines(room=1), [], []
    allocation = Allocation(AllocationConfig(1, 3, 0.0), 1, fleet, lambda text: None, told.append, kept.append)
    assert told == [2], "two of three engines are not there yet"
    for _ in range(8):  # generating takes three times as long as training
        allocation.after_step(Load(30.0, 1.0), 30.0, 20.0)
    assert (fleet.num_engines, told[-1]) == (1, 0), "they wait for room, and nobody else gets what becomes free"
    fleet.room = 3
    allocation.after_step(Load(30.0, 1.0), 30.0, 20.0)
    assert fleet.num_engines == 3
    for _ in range(20):
        allocation.after_step(Load(1.0, 1.0), 30.0, 0.0)
    assert (fleet.num_engines, told[-1]) == (1, 2) and kept[0] == 3 and kept[-1] == 1


@pytest.mark.usefixtures("cluster")
def test_engines_come_and_go_between_steps_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    testing.write_tiny_inputs(tmp_path)
    load, update, busiest = Fleet.load, Learner.update, [0.0]

    def remember(self):
        found = load(self)
        busiest[0] = max(busiest[0], found.busy_s)
        return found

    def slower_later(self, batches, objective, step, *arguments):
        """Generating takes longer at first; later training takes three times as long, on however slow a machine."""
        if step >= SLOW_FROM:
            time.sleep(3 * busiest[0])
        return update(self, batches, objective, step, *arguments)

    monkeypatch.setattr(Fleet, "load", remember)
    monkeypatch.setattr(Learner, "update", slower_later)
    rollout = f"""prompts_per_step: {PROMPTS} max_new_tokens: 96 placement: SPLIT
        allocation {{ max_engine_count: 2 move_time {{ nanos: 1 }} }}"""
    fields = f'rewards {{ regular_expression: "z" }} group_size: {GROUP}'
    job = testing.tiny_job(tmp_path, "grpo", fields, f"max_steps: {STEPS}", rollout)
    run_stage(job, "train")
    found = testing.steps(job)
    engines = [one["engines"] for one in found]
    assert engines[0] == 1 and 2 in engines[:SLOW_FROM] and engines[-1] == 1, engines
    said = testing.messages(job)
    assert (
        "2 engines generate from now on instead of 1" in said and "1 engines generate from now on instead of 2" in said
    )
    assert max(one["drift"] for one in found) < 1e-4 and all(1 <= one["rollout_imbalance"] <= 2 for one in found)
    assert all(0 <= one[name] <= 1 for one in found for name in ("engine_utilisation", "rank_utilisation"))
    trace = recorded(RunFolder.of(job).events("train"), engine_gpus=1, move_s=1.0)
    assert len(trace.steps) == STEPS - 1 and trace.num_gpus == 3, "two engines beside the rank"
    assert all(step.training_gpu_s > 0 for step in trace.steps)
    # The last step's samples may all have been drawn in the step before.
    assert all(step.generating_gpu_s > 0 for step in trace.steps[:-1])
    written = testing.samples(job)
    groups = {(one["step"], one["record_id"]) for one in written}
    assert len(written) == STEPS * PROMPTS * GROUP and len(groups) == STEPS * PROMPTS
    assert split.read(RunFolder.of(job).stage("train")) == Split(1, 1), "what a run that resumes starts with"
