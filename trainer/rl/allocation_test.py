"""Engines come while ranks wait for samples and leave while they wait for ranks; every sample is trained on once."""

import os
import time
from pathlib import Path

import pytest
import ray

from finecut.trainer.rl import testing
from finecut.trainer.rl.learner import Learner
from finecut.trainer.rollout.fleet import Fleet
from finecut.trainer.stage import run_stage

STEPS, SLOW_FROM, PROMPTS, GROUP = 7, 4, 4, 2


@pytest.fixture
def cluster():
    os.environ |= {"RAY_worker_niceness": "0"}  # else every other program of the machine goes first
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


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
    written = testing.samples(job)
    groups = {(one["step"], one["record_id"]) for one in written}
    assert len(written) == STEPS * PROMPTS * GROUP and len(groups) == STEPS * PROMPTS
