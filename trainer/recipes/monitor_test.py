"""What the monitor sees of real runs: numbers, spikes, what is not finite, profiles, and the planner's layout."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finecut.proto import job_pb2
from finecut.proto.run import RunFolder
from finecut.proto.run.events import follow
from finecut.trainer import stage as trainer_stage
from finecut.trainer.liveness.liveness import DRIVEN
from finecut.trainer.metrics import flops, network, profiling
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder, GatedMlp
from finecut.trainer.recipes import optimization
from finecut.trainer.recipes.testing import run_ranks, tiny_job, write_tiny_inputs

BATCH = "batch { global_blocks: 4 }"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_tiny_inputs(root)
    return root


def steps(job: job_pb2.JobConfig) -> list[dict[str, float]]:
    found = follow(RunFolder.of(job).events("sft"))[0]
    return [dict(event.step.values) for event in found if event.WhichOneof("event") == "step"]


def messages(job: job_pb2.JobConfig) -> str:
    return "\n".join(event.message for event in follow(RunFolder.of(job).events("sft"))[0] if event.message)


def train(job: job_pb2.JobConfig) -> None:
    trainer_stage.run_stage(job, "sft")


def test_steps_with_details_have_norms_tokens_probes_and_a_profile(root: Path, tmp_path: Path) -> None:
    metrics = "metrics { detail_every_steps: 2 profile { first_step: 2 step_count: 2 } }"
    job = tiny_job(root, f"max_steps: 4 {BATCH} {metrics} checkpointing {{ every_steps: 2 }}", storage=str(tmp_path))
    train(job)
    plain, detailed = steps(job)[0], steps(job)[1]
    assert not any(name.startswith("gradient_norm/") for name in plain)
    blocks = [value for name, value in detailed.items() if name.startswith("gradient_norm/")]
    assert np.sqrt(np.square(blocks).sum()) == pytest.approx(detailed["gradient_norm"], rel=1e-4)
    assert {"gradient_norm/embedding", "gradient_norm/layers.1"} < detailed.keys()
    assert 0 < detailed["token_loss/p50"] <= detailed["token_loss/p99"] <= detailed["token_loss/max"]
    assert detailed["probe/compute_slowest_over_median"] == 1.0
    assert 0 < plain["goodput"] <= 1 and plain["memory/train/peak_gib"] > 0
    assert steps(job)[2]["checkpoint_seconds"] > 0 and "checkpoint_seconds" not in steps(job)[3]
    assert "the hardest token is" in messages(job)
    (of_source,) = (value for name, value in detailed.items() if name.startswith("token_loss/source/"))
    assert 0 < of_source < detailed["token_loss/max"]
    folder = RunFolder.of(job).stage("sft") / "profile"
    costs = (folder / "costs-steps-2-3.txt").read_text().splitlines()
    # Which ten cost most is another thing on a machine that much other work shares.
    assert len(costs) == 10 and all("of the CPU's time" in line for line in costs)
    assert profiling.in_words("aten::mm") == "matrix product"
    assert (folder / "trace-steps-2-3.json.gz").stat().st_size > 1_000
    assert costs[0] in messages(job)
    curves = EventAccumulator(str(RunFolder.of(job).tensorboard("sft")), {"histograms": 0, "tensors": 0})
    curves.Reload()
    assert [event.step for event in curves.Histograms("tokens/loss")] == [2, 4]
    assert (
        "| nats | token | after |" in curves.Tensors("tokens/worst/text_summary")[0].tensor_proto.string_val[0].decode()
    )


def test_operations_are_those_of_the_documents(root: Path, tmp_path: Path) -> None:
    job = tiny_job(root, f"max_steps: 1 {BATCH}", storage=str(tmp_path))
    train(job)
    found = steps(job)[0]
    config = DecoderConfig.from_folder(root / "model")
    done = found["tflops_per_second_per_rank"] * 1e12 * found["step_seconds"]
    tokens = found["tokens_per_second"] * found["step_seconds"]
    trained = round(found["trained_tokens_per_second"] * found["step_seconds"])
    # Two documents a block, of 18 and of 4 to 12 tokens: between each token alone and all in one.
    least = flops.step_flops(config, [1] * round(tokens), trained, None)
    most = flops.step_flops(config, [round(tokens)], trained, None)
    assert least < done < most


def test_a_spike_names_the_examples_of_its_batch(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = optimization.forward_backward

    def spiking(model, micro_batches, loss_scale, devices, objective):
        found = original(model, micro_batches, loss_scale, devices, objective)
        spiking.calls += 1
        return found if spiking.calls != 18 else optimization.StepLoss(50.0, found.tokens, found.metrics)

    spiking.calls = 0
    monkeypatch.setattr(optimization, "forward_backward", spiking)
    job = tiny_job(root, f"max_steps: 18 {BATCH}", storage=str(tmp_path))
    train(job)
    assert "step 18: loss 50.0000 is a spike" in messages(job)
    (line,) = (RunFolder.of(job).stage("sft") / "anomalies.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["step"] == 18 and len(entry["example_ids"]) == 8 and len(set(entry["example_ids"])) == 8


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_not_finite_is_traced_to_its_module(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    job = tiny_job(root, f"max_steps: 2 {BATCH}", storage=str(tmp_path))
    if ranks == 2:
        run_ranks(2, expect_source, job, 1)
    else:
        expect_source(job, 0)
    assert json.loads((RunFolder.of(job).stage("sft") / "anomalies.jsonl").read_text())["example_ids"]


def expect_source(job: job_pb2.JobConfig, broken_rank: int) -> None:
    """Trains with a feed-forward part of layer 1 that divides by zero on one rank in step 1."""
    original = GatedMlp.forward
    build = Decoder.__init__

    def remember(self: Decoder, *arguments: object, **named: object) -> None:
        build(self, *arguments, **named)  # type: ignore[arg-type]
        self.layers[1].mlp.is_broken = int(os.environ.get("RANK", "0")) == broken_rank

    def forward(self: GatedMlp, x_BLD: torch.Tensor) -> torch.Tensor:
        found = original(self, x_BLD)
        return found / 0 if getattr(self, "is_broken", False) and self.training else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DRIVEN, "1")  # ranks that fail together must not end each other
        patch.setattr(Decoder, "__init__", remember)
        patch.setattr(GatedMlp, "forward", forward)
        with pytest.raises(FloatingPointError) as caught:
            trainer_stage.run_stage(job, "sft")
    assert f"first on rank {broken_rank}: the output of layers.1.mlp" in str(caught.value)


def test_a_slow_rank_is_named_while_it_trains(root: Path, tmp_path: Path) -> None:
    job = tiny_job(root, f"max_steps: 2 {BATCH} metrics {{ detail_every_steps: 1 }}", storage=str(tmp_path))
    run_ranks(2, train_on_a_slow_rank, job)
    assert "rank 1 is slow: the same matrix product takes it" in messages(job)
    assert "rank 0 is slow" not in messages(job)


def train_on_a_slow_rank(job: job_pb2.JobConfig) -> None:
    """Rank 1 multiplies matrices five seconds late, more than a busy machine can make up for."""
    multiply = torch.mm

    def slow(*matrices: torch.Tensor) -> torch.Tensor:
        time.sleep(5)
        return multiply(*matrices)

    with pytest.MonkeyPatch.context() as patch:
        if os.environ["RANK"] == "1":
            patch.setattr(network, "_REPEATS", 1)
            patch.setattr(torch, "mm", slow)
        train(job)


def test_the_planner_lays_out_what_is_left_to_it(root: Path, tmp_path: Path) -> None:
    job = tiny_job(root, f"max_steps: 1 {BATCH} parallelism {{ mode: AUTO }}", storage=str(tmp_path))
    train(job)
    assert "parallelism AUTO chose batch { micro_blocks: " in messages(job)


def test_watching_waits_for_the_device_no_more_often_with_more_micro_batches(root: Path, tmp_path: Path) -> None:
    """Every read of a number from a tensor is a wait on a GPU."""

    def reads(micro_blocks: int) -> int:
        calls = [0]
        with pytest.MonkeyPatch.context() as patch:
            for name in ("item", "tolist", "cpu"):
                original = getattr(torch.Tensor, name)

                def counted(tensor, *arguments, original=original):
                    caller = sys._getframe(1).f_code.co_filename
                    watching = ("/monitor.py", "/watched.py", "/rank_numbers.py")
                    calls[0] += "/metrics/" in caller or caller.endswith(watching)
                    return original(tensor, *arguments)

                patch.setattr(torch.Tensor, name, counted)
            batch = f"batch {{ global_blocks: 4 micro_blocks: {micro_blocks} }}"
            train(tiny_job(root, f"max_steps: 3 {batch}", storage=str(tmp_path / str(micro_blocks))))
        return calls[0]

    assert 0 < reads(1) == reads(4)
