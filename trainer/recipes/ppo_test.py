"""PPO with a reward model that was trained here, through real engines; on two ranks as on one."""

import json
import os
from pathlib import Path

import pytest
import ray

from finecut.proto import job_pb2
from finecut.proto.run import RunFolder
from finecut.trainer.recipes.testing import run_ranks
from finecut.trainer.recipes.testing_pairs import tiny_pairs_job, write_tiny_pairs
from finecut.trainer.rl import testing
from finecut.trainer.stage import run_stage


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, prompts, and a reward model that likes answers which count upwards."""
    folder = tmp_path_factory.mktemp("ppo")
    testing.write_tiny_inputs(folder)
    write_tiny_pairs(folder / "pairs", folder / "model", 24, 4)
    job = tiny_pairs_job(folder, "reward_model", training="max_steps: 60")
    artifact = run_stage(job, "reward_model")
    assert artifact is not None and artifact.model.metrics["evaluation_accuracy"] > 0.8
    return folder


def ppo(root: Path, steps: int, storage: str, fields: str = "", rollout: str = "") -> job_pb2.JobConfig:
    reward = f'rewards {{ model: "{root}/runs/tiny/stages/reward_model/artifact" }}'
    training = f"max_steps: {steps} optimizer {{ learning_rate: 2e-3 }}"
    return testing.tiny_job(root, "ppo", f"{reward} {fields}", training, rollout, storage=storage)


def values(job: job_pb2.JobConfig) -> list[dict[str, float]]:
    lines = RunFolder.of(job).events("train").read_text(encoding="utf-8").splitlines()
    return [event["step"]["values"] for line in lines if "step" in (event := json.loads(line))]


def test_the_reward_models_score_rises_at_a_bounded_kl(root: Path) -> None:
    os.environ |= {"RAY_worker_niceness": "0"}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    fields = "samples_per_prompt: 4 minibatches: 2 critic_learning_rate: 5e-3 kl { coefficient: 0.05 target: 6 }"
    job = ppo(root, 40, "learns", fields, "prompts_per_step: 8 max_new_tokens: 6")
    run_stage(job, "train")
    ray.shutdown()
    found = values(job)
    rewards = [one["reward"] for one in found]
    gain, spread = sum(rewards[-5:]) / 5 - sum(rewards[:5]) / 5, sum(one["reward_std"] for one in found[:5]) / 5
    assert gain > spread, (rewards, spread)  # by more than a standard deviation of what it began with
    assert max(one["kl_per_sequence"] for one in found) < 18 and found[-1]["kl_per_sequence"] > 0.5
    assert {one["kl_coefficient"] for one in found[:3]} != {one["kl_coefficient"] for one in found[-3:]}
    assert sum(one["critic_explained_variance"] for one in found[-5:]) / 5 > 0.1
    assert max(one["drift"] for one in found) < 1e-4


def _run(job: bytes) -> None:
    run_stage(job_pb2.JobConfig.FromString(job), "train")


def test_two_ranks_compute_what_one_does(root: Path) -> None:
    """Ranks share the answers of one batch; engines, rewards, advantages and the next weights are those of one rank."""
    alone, together = (ppo(root, 2, name, "samples_per_prompt: 2") for name in ("alone", "together"))
    run_ranks(1, _run, alone.SerializeToString())
    run_ranks(2, _run, together.SerializeToString())
    kept = (
        "reward",
        "loss",
        "gradient_norm",
        "entropy",
        "kl_per_sequence",
        "critic_loss",
        "critic_gradient_norm",
        "value",
    )
    for one, two in zip(values(alone), values(together), strict=True):
        assert [one[name] for name in kept] == pytest.approx([two[name] for name in kept], rel=2e-3, abs=2e-4)
