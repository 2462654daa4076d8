"""What the monitor of a recipe with rollouts sees of real optimizer steps, without engines."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finecut.trainer.config import Precision, TrainingConfig
from finecut.trainer.keeping import MetricsConfig
from finecut.trainer.models.logits import load_decoder
from finecut.trainer.parallel import mesh, process_group
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.parallel.sharding import parallelize
from finecut.trainer.recipes.objective import CrossEntropy
from finecut.trainer.recipes.testing import tiny_job, write_tiny_inputs
from finecut.trainer.rl import rows
from finecut.trainer.rl.learner import Learner
from finecut.trainer.rl.monitor import RolloutMonitor
from finecut.trainer.rl.testing import make_sample

SAMPLES = [make_sample(3, 5), make_sample(2, 7, inserted=(2, 3)), make_sample(6, 6)]


class Heard:
    """A recorder that remembers."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.names: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def histogram(self, name: str, step: int, values: object) -> None:
        self.names.append(name)

    text = histogram


@dataclasses.dataclass
class Run:
    """One rank with a policy."""

    policy: Learner
    monitor: RolloutMonitor
    heard: Heard
    devices: Devices
    folder: Path

    def step(self, step: int, is_last: bool = False) -> dict[str, float]:
        """Samples, learns, and records, as a recipe does."""
        with self.monitor.step(step):
            self.monitor.at("rollout")
            self.monitor.sampled(SAMPLES)
            batches = rows.micro_batches(SAMPLES, range(3), 64, 1, self.devices)
            self.monitor.at("train")
            learnt = self.policy.update(batches, CrossEntropy(), step)
            self.monitor.at("publish")
            found = learnt | {"step_seconds": 0.5}
            return self.monitor.record(step, found, is_last) | found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_tiny_inputs(root, num_blocks=2)
    return root


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Iterator[Run]:
    job = tiny_job(root, "batch { global_blocks: 1 }")
    training = TrainingConfig.from_proto(job.stages[0].sft.training)
    training = dataclasses.replace(training, metrics=MetricsConfig(detail_every_steps=2))
    with process_group.connect() as devices:
        devices = mesh.arrange(devices, training.parallelism)
        model = load_decoder(root / "model").train()
        parallelize(model, training, Precision.FP32, devices)
        policy = Learner(model, training, 1e-3, Precision.FP32, 10, devices)
        setup: Any = SimpleNamespace(
            devices=devices,
            place=SimpleNamespace(artifact=tmp_path / "stage" / "artifact"),
            config=SimpleNamespace(training=training),
            precision=Precision.FP32,
            tokenizer=SimpleNamespace(decode=lambda ids: " ".join(map(str, ids))),
        )
        (tmp_path / "stage").mkdir()
        heard = Heard()
        yield Run(policy, RolloutMonitor(setup, [policy], heard, 0), heard, devices, tmp_path / "stage")  # type: ignore[arg-type]


def test_steps_have_phases_operations_and_now_and_then_details(run: Run) -> None:
    plain, detailed = run.step(1), run.step(2, is_last=True)
    assert plain["rollout_seconds"] >= 0 and plain["memory/publish/peak_gib"] > 0 and 0 < plain["goodput"] <= 1
    assert plain["peak_memory_gib"] == max(value for name, value in plain.items() if name.endswith("/peak_gib"))
    assert 0 < plain["tflops_per_second_per_rank"] == pytest.approx(detailed["tflops_per_second_per_rank"])
    assert not any(name.startswith(("gradient_norm/", "token_loss/")) for name in plain)
    norms = [value for name, value in detailed.items() if name.startswith("gradient_norm/")]
    assert math.sqrt(sum(norm**2 for norm in norms)) == pytest.approx(detailed["gradient_norm"], rel=1e-4)
    # The least likely of the samples' tokens, as make_sample numbers them, is the seventh.
    assert detailed["token_loss/max"] == pytest.approx(0.5 + 0.1 * 6) and run.heard.names == [
        "tokens/loss",
        "tokens/worst",
    ]
    assert detailed["probe/compute_slowest_over_median"] == 1.0


def test_what_is_not_finite_is_traced_and_the_records_of_its_answers_are_kept(run: Run) -> None:
    broken = run.policy.model.layers[1].mlp
    broken.register_forward_hook(lambda module, given, result: result / 0)
    with pytest.raises(FloatingPointError, match=r"first on rank 0: the output of layers\.1\.mlp"):
        run.step(1)
    (line,) = (run.folder / "anomalies.jsonl").read_text().splitlines()
    assert json.loads(line)["example_ids"] == [sample.record_id for sample in SAMPLES]


def test_a_gradient_that_stands_out_is_told_with_its_answers(run: Run) -> None:
    for step in range(1, 20, 2):  # without details
        run.monitor._spikes.add(step, 1.0 + 0.01 * (step % 4))
        run.monitor._spikes.add(step, 1.0 - 0.01 * (step % 4))
    with torch.no_grad():
        for parameter in run.policy.model.parameters():
            parameter.mul_(3)
    run.step(21)
    assert "gradient norm" in run.heard.messages[0] and "is a spike" in run.heard.messages[0]
    assert json.loads((run.folder / "anomalies.jsonl").read_text())["what"] == "gradient norm"
