"""PPO with a reward model that was trained here, through real engines."""

import json
from pathlib import Path

import pytest

from finecut.proto import job_pb2
from finecut.proto.run import RunFolder
from finecut.trainer.recipes.testing_pairs import tiny_pairs_job
from finecut.trainer.rl import testing
from finecut.trainer.stage import run_stage


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, prompts, and a reward model that likes some token ids."""
    folder = tmp_path_factory.mktemp("ppo")
    testing.write_tiny_inputs(folder)
    testing.write_preferences(folder / "pairs", folder / "model", 192)
    job = tiny_pairs_job(folder, "reward_model", training="max_steps: 60")
    job.stages[0].reward_model.training.optimizer.learning_rate = 3e-3
    artifact = run_stage(job, "reward_model")
    assert artifact is not None and artifact.model.metrics["evaluation_accuracy"] > 0.8
    return folder


def ppo(root: Path, steps: int, storage: str, fields: str = "", rollout: str = "") -> job_pb2.JobConfig:
    reward = f'rewards {{ model: "{root}/runs/tiny/stages/reward_model/artifact" }}'
    training = f"max_steps: {steps} optimizer {{ learning_rate: 3e-3 }}"
    return testing.tiny_job(root, "ppo", f"{reward} {fields}", training, rollout, storage=storage)


def values(job: job_pb2.JobConfig) -> list[dict[str, float]]:
    lines = RunFolder.of(job).events("train").read_text(encoding="utf-8").splitlines()
    return [event["step"]["values"] for line in lines if "step" in (event := json.loads(line))]


def test_the_reward_models_score_rises_at_a_bounded_kl(root: Path) -> None:
    fields = "samples_per_prompt: 8 critic_learning_rate: 5e-3 kl { coefficient: 0.02 target: 6 }"
    job = ppo(root, 40, "learns", fields, "prompts_per_step: 8 max_new_tokens: 6")
    run_stage(job, "train")
    found = values(job)
    rewards = [one["reward"] for one in found]
    # A mean over ten steps has a standard error of about 0.1, which is that of 80 prompts.
    assert sum(rewards[-10:]) / 10 - sum(rewards[:10]) / 10 > 0.3, rewards
    assert max(one["kl_per_sequence"] for one in found) < 18 and found[-1]["kl_per_sequence"] > 0.5
    assert {one["kl_coefficient"] for one in found[:3]} != {one["kl_coefficient"] for one in found[-3:]}
    assert sum(one["critic_explained_variance"] for one in found[-10:]) / 10 > 0.05
    assert max(one["drift"] for one in found) < 1e-4
