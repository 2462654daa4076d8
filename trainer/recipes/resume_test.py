"""Resumed runs see every sample once and in the same steps, whatever the ranks and wherever the checkpoints lie."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

from finecut.proto import job_pb2
from finecut.proto.run import RunFolder
from finecut.trainer import stage as trainer_stage
from finecut.trainer.data.batches import IGNORED, MicroBatch
from finecut.trainer.recipes import optimization, supervised
from finecut.trainer.recipes.testing import run_ranks, tiny_job, write_tiny_inputs

# 12 blocks: an epoch is three steps.
TRAINING = "max_steps: 6 batch { global_blocks: 4 } checkpointing { every_steps: 3 keep_last: 3 }"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_tiny_inputs(root)
    return root


def train_recording(job: job_pb2.JobConfig, record: Path, stop_after: int | None = None) -> None:
    """Trains as one rank and appends a line to `record` for each step: its number and the blocks of this rank.

    With `stop_after`, fails at once after so many steps.
    """
    train_step, forward_backward = supervised.train_step, optimization.forward_backward
    taken: list[str] = []

    def recording_forward_backward(model, micro_batches, loss_scale, devices, objective):
        taken[:] = [identity for batch in micro_batches for identity in identities(batch)]
        return forward_backward(model, micro_batches, loss_scale, devices, objective)

    def recording_step(model, optimizer, scaler, data, config, step, devices, objective):
        if stop_after is not None and step > stop_after:
            raise InterruptedError
        numbers = train_step(model, optimizer, scaler, data, config, step, devices, objective)
        path = record.with_suffix(f".{os.environ.get('RANK', '0')}")
        with path.open("a") as file:
            file.write(json.dumps([step, taken]) + "\n")
        return numbers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervised, "train_step", recording_step)
        patch.setattr(optimization, "forward_backward", recording_forward_backward)
        trainer_stage.run_stage(job, "sft")


def identities(batch: MicroBatch) -> list[str]:
    """Names of the blocks in a micro-batch, by their content; a block that counts for nothing has none."""
    rows = zip(batch.input_ids_BL.cpu(), batch.targets_BL.cpu(), strict=True)
    return [hashlib.sha1(ids.numpy().tobytes()).hexdigest() for ids, targets in rows if (targets != IGNORED).any()]


def blocks_by_step(record: Path) -> dict[int, Counter[str]]:
    """What was trained in each step, over all ranks; a step that was done again counts with its last try."""
    found: dict[int, Counter[str]] = {}
    for path in record.parent.glob(f"{record.name}.*"):
        of_rank = dict(json.loads(line) for line in path.read_text().splitlines())
        for step, blocks in of_rank.items():
            found[step] = found.get(step, Counter()) + Counter(blocks)
    return found


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1)])
def test_every_block_is_trained_once_an_epoch_across_a_resume_on_other_ranks(root, tmp_path, before, after):
    whole = tiny_job(root, TRAINING, storage=str(tmp_path / "whole"))
    train_recording(whole, tmp_path / "expected")
    job = tiny_job(root, TRAINING, storage=str(tmp_path / "resumed"))
    run_ranks(before, train_recording_to_step_4, job, tmp_path / "before")
    run_ranks(after, train_recording, job, tmp_path / "after")

    expected = blocks_by_step(tmp_path / "expected")
    first, second = blocks_by_step(tmp_path / "before"), blocks_by_step(tmp_path / "after")
    assert (max(first), min(second), max(second)) == (4, 4, 6), "step 4 was lost with its rank and done again"
    found = {step: blocks for step, blocks in first.items() if step <= 3} | second
    assert found == expected
    for epoch in ((1, 2, 3), (4, 5, 6)):
        seen = sum((found[step] for step in epoch), Counter())
        assert len(seen) == 12 and set(seen.values()) == {1}
    largest = max((weight - other).abs().max().item() for weight, other in both_weights(whole, job))
    assert largest < 1e-3  # Adam divides by the gradient's size: rounding in tiny gradients shows in the weights


def train_recording_to_step_4(job: job_pb2.JobConfig, record: Path) -> None:
    with pytest.raises(InterruptedError):
        train_recording(job, record, stop_after=4)


def both_weights(one: job_pb2.JobConfig, other: job_pb2.JobConfig):
    one_weights, other_weights = (load_file(weights_file(job)) for job in (one, other))
    assert one_weights.keys() == other_weights.keys()
    return [(one_weights[name], other_weights[name]) for name in one_weights]


def weights_file(job: job_pb2.JobConfig) -> Path:
    return next(RunFolder.of(job).artifact("sft").glob("*.safetensors"))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("lora", ["", "lora { rank: 4 dropout: 0.2 }"], ids=["full", "lora-with-dropout"])
def test_resume_from_a_background_checkpoint_is_bit_identical(root, tmp_path, ranks, lora):
    whole = tiny_job(root, TRAINING, lora, storage=str(tmp_path / "whole"))
    run_ranks(ranks, train_recording, whole, tmp_path / "whole-blocks")
    training = TRAINING.replace("every_steps: 3", f'every_steps: 1 asynchronous: true folder: "{tmp_path}/elsewhere"')
    job = tiny_job(root, training, lora, storage=str(tmp_path / "resumed"))
    run_ranks(ranks, train_recording_to_step_4, job, tmp_path / "before")
    shutil.rmtree(tmp_path / "elsewhere" / "tiny" / "sft" / "step-00000004", ignore_errors=True)
    run_ranks(ranks, train_recording, job, tmp_path / "after")
    assert min(blocks_by_step(tmp_path / "after")) == 4
    assert weights_file(job).read_bytes() == weights_file(whole).read_bytes()
    assert not RunFolder.of(job).checkpoints("sft").exists()
