"""GRPO through real engines on CPUs: it learns, and stops where it must."""

import math
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finecut.proto.config import UserError
from finecut.proto.run import RunFolder
from finecut.trainer.models.logits import load_decoder
from finecut.trainer.rl import testing
from finecut.trainer.rl.rollouts import Rollouts
from finecut.trainer.rollout.testing import write_talkative_policy
from finecut.trainer.stage import run_stage

pytest_plugins = ["finecut.trainer.rl.testing_fixtures"]
pytestmark = pytest.mark.usefixtures("cluster")
REWARD = 'rewards { regular_expression: "z" }'
VERIFIER = 'verifiers { regular_expression: "z" }'


def test_a_verifiable_reward_rises_from_under_a_fifth_to_over_four_fifths(root: Path) -> None:
    rollout = "prompts_per_step: 8 max_new_tokens: 8 evaluation { every_steps: 15 }"
    training = "max_steps: 32 optimizer { learning_rate: 3e-3 } metrics { detail_every_steps: 20 }"
    task = f'tasks {{ name: "quiz" data: "{root / "data"}" generation {{ max_new_tokens: 8 {VERIFIER} }} }}'
    measure = f'stages {{ name: "measure" evaluate {{ model: "@train" while_training {{ every_steps: 20 }} {task} }} }}'
    job = testing.tiny_job(root, "grpo", REWARD, training, rollout, storage="learns", stages=measure)
    artifact = run_stage(job, "train")
    found = testing.steps(job)
    rewards = [one["reward"] for one in found]
    assert sum(rewards[:4]) / 4 < 0.2 and sum(rewards[-4:]) / 4 > 0.8, rewards
    assert max(one["drift"] for one in found) < 1e-4 and {one["staleness_max"] for one in found} == {0}
    assert artifact is not None and artifact.model.steps == 32 and artifact.model.metrics["reward"] == rewards[-1]
    start = {name for name in found[0] if name.startswith("start/")}
    before = ("inputs", "engines", "policy", "rewards", "waiting_for_engines", "first_weights", "first_evaluation")
    assert start == {f"start/{name}" for name in (*before, "first_rollout")} and not any(
        "start/policy" in one for one in found[1:]
    )
    begun = dict(re.findall(r"(\w+) [\d.]+ s \(from ([\d.]+) s on\)", testing.messages(job)))
    assert float(begun["policy"]) < found[0]["start/engines"]  # models are loaded while engines start
    measured = testing.evaluations(job)
    assert list(measured) == [0, 15, 20, 30, 32]
    asked = measured.pop(20)  # by the evaluate stage alone, which asks the same as the recipe does
    assert asked["measure.quiz/answers"] == 6 and "reward" not in asked
    assert {one["answers"] for one in measured.values()} == {6}
    for step in (0, 32):
        accuracy, low, high = (measured[step][f"measure.quiz/accuracy{end}"] for end in ("", "_low", "_high"))
        assert accuracy == measured[step]["reward"] and 0 <= low <= accuracy <= high <= 1 and low < high
    assert measured[0]["reward"] < 0.5 < 0.8 < measured[32]["reward"] == artifact.model.metrics["evaluation_reward"]
    written = testing.samples(job)
    assert len(written) == 32 * 8 * 8
    at_last = [sample for sample in written if sample["step"] == 32]
    assert sum(sample["reward"] for sample in at_last) / 64 == pytest.approx(rewards[-1])  # type: ignore[misc]
    assert all(("z" in sample["answer"]) == (sample["reward"] == 1) for sample in written)  # type: ignore[operator]
    board = EventAccumulator(str(RunFolder.of(job).tensorboard("train"))).Reload()
    assert {"train/entropy", "train/drift", "train/sync_seconds", "eval/reward"} <= set(board.Tags()["scalars"])
    assert "tokens/advantage" in board.Tags()["histograms"]
    assert {"samples/text_summary", "tokens/answer/text_summary"} <= set(board.Tags()["tensors"])
    plain, detailed = found[10], found[19]
    assert 0 < plain["goodput"] <= 1 and 0 < plain["engine_utilisation"] <= 1 and plain["memory/score/peak_gib"] > 0
    assert plain["tflops_per_second_per_rank"] > 0 and not any(name.startswith("token_loss/") for name in plain)
    norms = [value for name, value in detailed.items() if name.startswith("gradient_norm/")]
    assert math.sqrt(sum(norm**2 for norm in norms)) == pytest.approx(detailed["gradient_norm"], rel=1e-4)
    assert 0 < detailed["token_loss/p50"] <= detailed["token_loss/max"]
    assert (
        detailed["probe/compute_slowest_over_median"] == 1.0 and "tokens/worst/text_summary" in board.Tags()["tensors"]
    )
    load_decoder(RunFolder.of(job).artifact("train"))  # what the next stage starts from


def test_every_field_of_the_variants_works_together_with_adapters_and_turns(root: Path) -> None:
    fields = f"""
        {REWARD} rewards {{ regular_expression: "e" weight: 0.5 name: "e" normalize: true }}
        group_size: 4 passes: 2 minibatches: 2 aggregation: CONSTANT_LENGTH scale_by_std: false clip_high: 0.28
        dual_clip: 3 kl {{ coefficient: 0.05 place: IN_LOSS }}
    """
    turns = 'multi_turn { max_turns: 3 environment: "finecut.trainer.rollout.testing_environments:Insistent" }'
    rollout = f"temperature: 1.2 top_k: 60 top_p: 0.95 placement: SPLIT max_staleness: 2 {turns}"
    talkative = root / "talkative"
    testing.write_prompts(talkative / "data", write_talkative_policy(talkative / "model"), 16, 6)
    job = testing.tiny_job(talkative, "grpo", fields, "max_steps: 4", rollout, lora="lora { rank: 4 }")
    artifact = run_stage(job, "train")
    found = testing.steps(job)
    assert artifact is not None and artifact.model.adapter
    assert all(1 < one["turns"] <= 3 for one in found) and "Go on, 1 more." in testing.samples(job)[0]["answer"]
    assert max(one["drift"] for one in found) < 1e-4 and found[-1]["kl"] > 0 and found[-1]["kl_loss"] > 0
    assert 1 <= max(one["staleness_max"] for one in found) <= 2 and found[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert all(one["groups_drawn"] == 4 and 0 <= one["equal_groups"] <= 1 for one in found)


def test_weights_that_an_engine_does_not_have_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect = Rollouts.collect

    def then_change_a_layer(self: Rollouts, step: int):
        found = collect(self, step)
        with torch.no_grad():
            self._publisher.source.model.layers[1].mlp.down_proj.weight.mul_(3)
        return found

    updates: list[object] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", updates.append)
    monkeypatch.setattr(Rollouts, "collect", then_change_a_layer)
    job = testing.tiny_job(root, "grpo", REWARD, "max_steps: 2", storage="drifts")
    with pytest.raises(UserError, match=r"max_logprob_drift: .* Weights differ in layer 1: model.layers.1.mlp.down"):
        run_stage(job, "train")
    assert not updates  # the only pass over a batch is judged before the optimizer steps


def test_an_engine_that_dies_is_replaced_and_a_reward_that_fails_is_counted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, pids = Rollouts.publish, []

    def kill_before(self: Rollouts, version: int) -> None:
        pids.append(self.fleet.status()[0].process_id)
        if version == 1:
            os.kill(pids[-1], signal.SIGKILL)
        publish(self, version)

    monkeypatch.setattr(Rollouts, "publish", kill_before)
    failing = 'rewards { python { path: "finecut.trainer.rl.testing_rewards:of_even_prompts" } }'
    fields = f"{REWARD} {failing} group_size: 4 max_unscored_answers: 40"
    job = testing.tiny_job(root, "grpo", fields, "max_steps: 3", storage="dies")
    run_stage(job, "train")
    assert [one["engine_restarts"] for one in testing.steps(job)] == [1, 1, 1] and pids[2] != pids[1] == pids[0]
    assert max(one["drift"] for one in testing.steps(job)) < 1e-4
    assert "rollout engine 0 died" in testing.messages(job)
    # Where a reward raises or gives NaN, an answer is counted, told and not learnt from.
    unscored = [sample for sample in testing.samples(job) if sample["reward"] is None]
    assert len(unscored) == sum(one["unscored_answers"] for one in testing.steps(job)) and 0 < len(unscored) <= 40
    assert "ValueError: odd" in testing.messages(job)


def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused_before_anything_starts(root: Path) -> None:
    job = testing.tiny_job(root, "grpo", REWARD, rollout="max_new_tokens: 600", storage="long")
    with pytest.raises(UserError, match=r"max_new_tokens: 600 and the longest prompt .* 6 tokens, .* 512 positions"):
        run_stage(job, "train")
