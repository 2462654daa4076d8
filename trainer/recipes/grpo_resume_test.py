"""A killed run of GRPO goes on, through real engines, and trains no sample twice."""

from pathlib import Path

import pytest

from finecut.proto import job_pb2
from finecut.trainer.rl import testing
from finecut.trainer.rl.session import Session
from finecut.trainer.stage import run_stage

pytest_plugins = ["finecut.trainer.rl.testing_fixtures"]
pytestmark = pytest.mark.usefixtures("cluster")
REWARD = 'rewards { regular_expression: "z" }'


def killed_after(monkeypatch: pytest.MonkeyPatch, job: job_pb2.JobConfig, step: int) -> None:
    """Runs until `step` is done, but for its checkpoint."""
    checkpoint = Session._checkpoint

    def die(self: Session, at: int) -> None:
        if at == step:
            raise KeyboardInterrupt
        checkpoint(self, at)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Session, "_checkpoint", die)
        run_stage(job, "train")


@pytest.mark.parametrize("placement", ["COLOCATED", "SPLIT"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    root: Path, monkeypatch: pytest.MonkeyPatch, placement: str
) -> None:
    """Two steps after a checkpoint are lost and done again; samples that were waiting in it are not sampled again."""
    fields = f"{REWARD} group_size: 4 kl {{ coefficient: 0.1 target: 0.5 }} resample_equal_groups: true"
    arguments = (root, "grpo", fields, "max_steps: 4 checkpointing { every_steps: 2 }", f"placement: {placement}")
    whole = testing.tiny_job(*arguments, storage=f"whole-{placement}")
    run_stage(whole, "train")
    killed = testing.tiny_job(*arguments, storage=f"killed-{placement}")
    killed_after(monkeypatch, killed, 3)
    run_stage(killed, "train")
    assert "resumed from step-00000002" in testing.messages(killed)
    same = ("step", "record_id", "sample_index", "answer", "reward")
    once, again = ([[sample[name] for name in same] for sample in testing.samples(job)] for job in (whole, killed))
    at = {"COLOCATED": 4, "SPLIT": 3}[placement]  # later weights reach split engines at another token
    assert [row for row in once if row[0] <= at] == [row for row in again if row[0] <= at]
    assert [row[0] for row in again] == sorted(row[0] for row in again)
    if placement == "COLOCATED":
        kept = ("reward", "kl_coefficient", "loss", "entropy")
        for ours, theirs in zip(testing.steps(whole)[2:], testing.steps(killed)[-2:], strict=True):
            assert [ours[name] for name in kept] == pytest.approx([theirs[name] for name in kept], rel=1e-3, abs=1e-5)
    else:
        assert max(one["staleness_max"] for one in testing.steps(whole)) == 1
