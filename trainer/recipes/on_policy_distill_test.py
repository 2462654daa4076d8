"""A student that learns from its own samples comes nearer to its teacher."""

import json
from pathlib import Path

import pytest

from finecut.proto.config import ConfigError, UserError
from finecut.proto.run import RunFolder
from finecut.trainer.rl import testing
from finecut.trainer.rollout.testing import write_tiny_policy
from finecut.trainer.stage import run_stage


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    # Narrow, so that the student is not sure of anything yet.
    testing.write_prompts(folder / "data", write_tiny_policy(folder / "model", initializer_range=0.1), 16, 6)
    write_tiny_policy(folder / "teacher", seed=1, initializer_range=0.1)
    write_tiny_policy(folder / "stranger", vocabulary_size=520)
    return folder


def job(root: Path, teacher: str = "teacher", fields: str = "", steps: int = 40):
    text = f'teacher: "{root / teacher}" divergence: REVERSE_KL {fields}'
    training = f"max_steps: {steps} optimizer {{ learning_rate: 1e-2 }}"
    return testing.tiny_job(root, "distill", text, training, "prompts_per_step: 16", storage=f"runs-{teacher}")


def test_half_of_the_divergence_is_gone(root: Path) -> None:
    resolved = job(root)
    artifact = run_stage(resolved, "train")
    lines = RunFolder.of(resolved).events("train").read_text(encoding="utf-8").splitlines()
    found = [event["step"]["values"] for line in lines if "step" in (event := json.loads(line))]
    assert artifact is not None and artifact.model.steps == 40
    assert found[-1]["divergence"] < found[0]["divergence"] / 2, [one["divergence"] for one in found]
    assert max(one["drift"] for one in found) < 1e-4


def test_a_teacher_with_another_vocabulary_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"teacher: .* vocabulary of 520 tokens and the trained model one of 500"):
        run_stage(job(root, "stranger"), "train")


def test_labels_are_refused_where_there_are_none(root: Path) -> None:
    with pytest.raises(ConfigError, match="there are no labels in the student's own samples"):
        job(root, fields="hard_label_weight: 0.5")
