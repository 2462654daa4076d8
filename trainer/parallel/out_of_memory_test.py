"""An allocator's error becomes a sentence with what was planned and what to change; the plan is near the truth."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from finecut.proto import training_pb2
from finecut.proto.config import UserError
from finecut.trainer.config import ActivationCheckpointing, ParallelismConfig, Precision, TrainingConfig
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import materialize
from finecut.trainer.models.lora import LoraConfig
from finecut.trainer.parallel import out_of_memory
from finecut.trainer.parallel.activation_checkpointing import checkpoint_layers
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
    return out_of_memory.plan(decoder, lora, config, Precision.FP32, block_size=64, devices=devices)


def kept_by(root: Path, mode: ActivationCheckpointing, micro_blocks: int) -> int:
    """Bytes that one forward pass keeps for the backward pass, parameters aside."""
    with torch.device("meta"):
        model = Decoder(DecoderConfig.from_folder(root / "model"), loss_chunk_tokens=16)
    checkpoint_layers(model.layers, mode)
    materialize(model, root / "model", "cpu", seed=0)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids_BL = torch.arange(64).expand(micro_blocks, -1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids_BL, ids_BL, torch.zeros_like(ids_BL), ids_BL)
    return sum(kept.values())


def test_frozen_models_are_counted_without_gradients(root):
    with torch.device("meta"):
        model = Decoder(DecoderConfig.from_folder(root / "model"))
    size = sum(parameter.numel() for parameter in model.parameters())
    layer = sum(parameter.numel() for parameter in model.layers[0].parameters())
    decoder = DecoderConfig.from_folder(root / "model")
    devices = Devices(0, 4, CPU, mesh=None)  # type: ignore[arg-type]
    plans = [
        out_of_memory.plan(decoder, None, training(), Precision.BF16, 64, devices, frozen)
        for frozen in ([], [decoder], [decoder, decoder])
    ]
    one = 2 * (size // 4 + size - 5 * layer)  # sharded in BF16, and the largest unit gathered
    assert [plan.frozen for plan in plans] == [0, one, 2 * one]
    assert [plan.total - plans[0].total for plan in plans] == [0, one, 2 * one]
    assert "frozen models" in out_of_memory.describe(plans[1], CPU, ERROR)
    assert "frozen models" not in out_of_memory.describe(plans[0], CPU, ERROR)


def test_parameters_gradients_and_optimizer_are_counted_exactly(root):
    with torch.device("meta"):
        model = Decoder(DecoderConfig.from_folder(root / "model"))
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    layer = 4 * sum(parameter.numel() for parameter in model.layers[0].parameters())
    outside = size - 6 * layer
    one = planned(root)
    assert (one.parameters, one.gradients, one.optimizer) == (size + outside + layer, size, 2 * size)
    four = planned(root, world_size=4, parallelism=ParallelismConfig(tensor_size=2), global_blocks=2)
    assert (four.parameters, four.gradients) == (size // 4 + (outside + layer) // 2, size // 4)
    # While micro-batches are added up, gradients are whole.
    accumulated = planned(root, world_size=4, parallelism=ParallelismConfig(tensor_size=2))
    assert accumulated.gradients == size // 2
    offloaded = ParallelismConfig(replicate_size=2, offload_optimizer=True)
    copies = planned(root, world_size=4, parallelism=offloaded, global_blocks=4)
    assert (copies.gradients, copies.optimizer) == (size // 2, 0)
    assert planned(root, LoraConfig(rank=2)).optimizer < 0.1 * one.optimizer


@pytest.mark.parametrize("mode", [ActivationCheckpointing.OFF, ActivationCheckpointing.FULL])
def test_activations_are_near_what_a_forward_pass_keeps(root, mode):
    # The difference of two sizes: what does not grow with the batch, such as the head's gradient, is left out.
    measured = kept_by(root, mode, 8) - kept_by(root, mode, 4)
    if mode is ActivationCheckpointing.FULL:  # in the backward pass one layer at a time has all of its own
        off = ActivationCheckpointing.OFF
        measured += (kept_by(root, off, 8) - kept_by(root, off, 4)) // 6
    counted = [planned(root, micro_blocks=n, activation_checkpointing=mode).activations for n in (4, 8)]
    assert 0.5 < (counted[1] - counted[0]) / measured < 2.0, (counted, measured)


def test_more_is_recomputed_less_is_kept(root):
    off, selective, full = (
        planned(root, activation_checkpointing=mode).activations for mode in ActivationCheckpointing
    )
    assert off > selective > full


def test_an_allocators_error_tells_what_was_planned_and_what_to_change(root):
    plan = planned(root, micro_blocks=4)
    with pytest.raises(UserError) as caught, out_of_memory.explained(plan, CPU):
        raise torch.OutOfMemoryError(ERROR)
    text = str(caught.value)
    assert text.startswith("out of memory on cpu: Tried to allocate 2.32 GiB. Planned for this rank: ")
    assert "activations of 256 tokens about " in text
    for remedy in ("batch.micro_blocks: 1 instead of 4", "SELECTIVE, or FULL", "offload_optimizer: true", "model.lora"):
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
