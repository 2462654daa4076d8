"""Every split of the same batch gives the gradient of one process that holds the whole batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finecut.dataprep.shards import SplitReader
from finecut.proto import job_pb2
from finecut.trainer.config import Precision, SftConfig
from finecut.trainer.data.batches import targets_of
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import locate_model, materialize
from finecut.trainer.parallel import process_group
from finecut.trainer.recipes import optimization, sft
from finecut.trainer.recipes.supervised_data import open_data
from finecut.trainer.recipes.testing import run_ranks, tiny_job, write_tiny_inputs

STEP = 2  # the last of an epoch of 12 blocks: 8 blocks, then 4, so that some ranks run out


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_tiny_inputs(root)
    return root


@pytest.fixture(scope="module")
def expected(root: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients without sharding, accumulation or any of the trainer's own arithmetic."""
    job = tiny_job(root)
    config = SftConfig.from_proto(job.stages[0].sft)
    with torch.device("meta"):
        model = Decoder(DecoderConfig.from_folder(root / "model"))
    materialize(model, locate_model(root / "model"), "cpu", seed=0)
    reader = SplitReader(root / "data", "train")
    order = np.random.default_rng([config.training.seed, 0]).permutation(12)[8:]
    blocks = reader.read([int(index) for index in order])
    targets = targets_of(blocks)
    ids = (blocks.input_ids_NL, blocks.position_id_NL, blocks.document_id_NL)
    loss = model(*(torch.from_numpy(array).long() for array in ids), torch.from_numpy(targets))
    loss = loss / int((targets != -100).sum())
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def measure(job: job_pb2.JobConfig, output: Path, loss_scale: float) -> None:
    """Writes loss and full gradients of one step, as this rank of the group sees them."""
    config = SftConfig.from_proto(job.stages[0].sft)
    with process_group.connect() as devices:
        source = locate_model(Path(job.stages[0].sft.model.path))
        decoder_config = DecoderConfig.from_folder(source.base)
        model = sft.build_model(config, decoder_config, source, Precision.FP32, devices)
        data = open_data(Path(job.stages[0].sft.data), source, decoder_config, config.training, devices)
        loss = optimization.forward_backward(model, data.train.step(STEP), loss_scale, devices)
        norm = optimization.clip_gradients(model, loss_scale, max_norm=1e9)
        gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
        if devices.is_main:
            torch.save({"loss": loss.mean, "norm": norm, "gradients": gradients}, output)


SPLITS = [
    pytest.param(1, "batch { micro_blocks: 8 }", 1.0, id="one-process-one-batch"),
    pytest.param(1, "batch { micro_blocks: 1 }", 1.0, id="one-process-accumulated"),
    pytest.param(1, "batch { micro_blocks: 2 } activation_checkpointing: FULL", 1024.0, id="recomputed-and-scaled"),
    pytest.param(2, "batch { micro_blocks: 1 }", 1.0, id="two-ranks-accumulated"),
    pytest.param(2, "batch { micro_blocks: 4 } activation_checkpointing: FULL", 1.0, id="two-ranks-one-has-no-blocks"),
]


@pytest.mark.parametrize("world_size, training, loss_scale", SPLITS)
def test_gradient_is_that_of_one_process(root, expected, tmp_path, world_size, training, loss_scale):
    job = tiny_job(root, training)
    if world_size == 1:
        measure(job, tmp_path / "result.pt", loss_scale)
    else:
        run_ranks(world_size, measure, job, tmp_path / "result.pt", loss_scale)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    loss, gradients = expected
    assert result["loss"] == pytest.approx(loss, rel=1e-6)
    assert result["gradients"].keys() == gradients.keys()
    torch.testing.assert_close(result["gradients"], gradients, rtol=1e-4, atol=1e-6)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    assert result["norm"] == pytest.approx(norm, rel=1e-5)
