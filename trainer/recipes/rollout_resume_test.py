"""A run with rollouts that was killed goes on, through real engines, and trains no sample twice."""

import shutil
from pathlib import Path

import pytest

from finecut.proto import job_pb2
from finecut.proto.run import RunFolder
from finecut.trainer.rl import testing
from finecut.trainer.rl.session import Session
from finecut.trainer.rollout.testing import write_tiny_policy
from finecut.trainer.stage import run_stage

pytest_plugins = ["finecut.trainer.rl.testing_fixtures"]
pytestmark = pytest.mark.usefixtures("cluster")
REWARD = 'rewards { regular_expression: "z" normalize: true } kl { coefficient: 0.1 target: 0.5 }'


def run_whole_and_killed(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], storage: str, lora: str = ""
) -> tuple[job_pb2.JobConfig, job_pb2.JobConfig]:
    """Four steps with a checkpoint after the second; and a run that finds what lay on disk after the third."""
    whole, killed = (
        testing.tiny_job(*arguments, storage=f"{storage}-{kind}", lora=lora)  # type: ignore[arg-type]
        for kind in ("whole", "killed")
    )
    checkpoint = Session._checkpoint

    def keep_what_is_there(self: Session, step: int) -> None:
        if step == 3:
            self._store.wait()
            shutil.copytree(RunFolder.of(whole).root, RunFolder.of(killed).root)
        checkpoint(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_checkpoint", keep_what_is_there)
        run_stage(whole, "train")
    run_stage(killed, "train")
    assert "resumed from step-00000002" in testing.messages(killed)
    trained = [sample["step"] for sample in testing.samples(killed)]
    assert trained == sorted(trained) and set(trained) == {1, 2, 3, 4}
    return whole, killed


def samples(job: job_pb2.JobConfig, up_to: int) -> list[list[object]]:
    same = ("step", "record_id", "sample_index", "answer", "reward")
    return [[sample[name] for name in same] for sample in testing.samples(job) if sample["step"] <= up_to]


def test_ppo_with_a_critic_goes_on_as_if_nothing_had_been(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The critic, the weight of the KL term and the rewards' running moments are what they were."""
    write_tiny_policy(root / "reference", seed=1)
    fields = f'{REWARD} samples_per_prompt: 4 critic_learning_rate: 5e-3 reference_model: "{root / "reference"}"'
    training = "max_steps: 4 checkpointing { every_steps: 2 }"
    whole, killed = run_whole_and_killed(monkeypatch, (root, "ppo", fields, training), "ppo", "lora { rank: 4 }")
    assert samples(whole, up_to=4) == samples(killed, up_to=4)
    kept = ("reward", "kl", "kl_coefficient", "loss", "critic_loss", "critic_return", "value", "entropy")
    for ours, theirs in zip(testing.steps(whole)[2:], testing.steps(killed)[-2:], strict=True):
        assert [ours[name] for name in kept] == pytest.approx([theirs[name] for name in kept], rel=1e-3, abs=1e-5)
    assert testing.steps(whole)[0]["kl"] > 0.1, "the reference is another model"


def test_engines_that_run_ahead_leave_samples_that_are_not_drawn_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = f"{REWARD} group_size: 4 resample_equal_groups: true"
    arguments = (root, "grpo", fields, "max_steps: 4 checkpointing { every_steps: 2 }", "placement: SPLIT")
    whole, killed = run_whole_and_killed(monkeypatch, arguments, "split")
    # Later weights reach engines of their own at another token.
    assert samples(whole, up_to=3) == samples(killed, up_to=3)
    assert max(one["staleness_max"] for one in testing.steps(whole)) == 1
