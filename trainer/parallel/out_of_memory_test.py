"""An allocator's error becomes a sentence with what was planned and what to change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from finecut.proto import training_pb2
from finecut.proto.config import UserError
from finecut.trainer.config import ActivationCheckpointing, ParallelismConfig, Precision, TrainingConfig
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.lora_config import LoraConfig
from finecut.trainer.parallel import out_of_memory
from finecut.trainer.parallel import planned as questions
from finecut.trainer.parallel.out_of_memory import MemoryPlan
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.testing import write_tiny_llama

CPU = torch.device("cpu")
ERROR = (
    "CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.10 GiB is free."
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_tiny_llama(root / "model", num_hidden_layers=6)
    return root


def training(**fields: object) -> TrainingConfig:
    defaults = TrainingConfig.from_proto(training_pb2.TrainingConfig())
    settings = {"micro_blocks": 1, "global_blocks": 8, "loss_chunk_tokens": 16, "parallelism": ParallelismConfig()}
    return dataclasses.replace(defaults, **(settings | fields))


def planned(root: Path, lora: LoraConfig | None = None, world_size: int = 1, **fields: object) -> MemoryPlan:
    config = training(**fields)
    devices = Devices(0, world_size, CPU, mesh=None, tensor_size=config.parallelism.tensor_size)  # type: ignore[arg-type]
    decoder = DecoderConfig.from_folder(root / "model")
    work = questions.workload(decoder, lora, config, Precision.FP32, 64, devices)
    return out_of_memory.plan(work, config, devices)


def test_an_allocators_error_tells_what_was_planned_and_what_to_change(root):
    plan = planned(root, micro_blocks=4)
    with pytest.raises(UserError) as caught, out_of_memory.explained(plan, CPU):
        raise torch.OutOfMemoryError(ERROR)
    text = str(caught.value)
    assert text.startswith("out of memory on cpu: Tried to allocate 2.32 GiB. Planned for this rank: ")
    assert "weights 0.0" in text and "micro-batches of 256 tokens" in text
    for remedy in (
        "mode: AUTO",
        "batch.micro_blocks: 1 instead of 4",
        "SELECTIVE, or FULL",
        "offload_optimizer: true",
        "model.lora",
    ):
        assert remedy in text
    assert "replicate_size" not in text


def test_only_what_is_not_done_yet_is_advised(root):
    done = {"activation_checkpointing": ActivationCheckpointing.FULL, "micro_blocks": 1}
    text = out_of_memory.describe(planned(root, LoraConfig(), **done), CPU, ERROR)
    for remedy in ("micro_blocks", "activation_checkpointing", "offload_optimizer", "model.lora"):
        assert remedy not in text.partition("To fit: ")[2]
    assert "shard_size" in text


def test_other_errors_pass_through(root):
    with pytest.raises(RuntimeError, match="something else"), out_of_memory.explained(planned(root), CPU):
        raise RuntimeError("something else")
