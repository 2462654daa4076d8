"""One rank that keeps parameters gathered trains, evaluates and stores the very same numbers."""

import dataclasses

import pytest
import torch
from google.protobuf import text_format
from torch.distributed.tensor import DTensor

from finecut.proto import training_pb2
from finecut.trainer.config import Precision, TrainingConfig
from finecut.trainer.data.batches import MicroBatch, TokenCounts
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import materialize
from finecut.trainer.models.lora import LoraConfig, apply_lora
from finecut.trainer.parallel import gathering, process_group
from finecut.trainer.parallel.sharding import parallelize
from finecut.trainer.recipes import optimization
from finecut.trainer.testing import write_tiny_llama

TEXT = "batch { global_blocks: 3 micro_blocks: 1 } optimizer { learning_rate: 1e-2 epsilon: 1e-8 max_gradient_norm: 1 }"


def micro_batches() -> list[MicroBatch]:
    made = []
    for seed in range(3):
        ids = torch.randint(500, (1, 16), generator=torch.Generator().manual_seed(seed))
        places = torch.arange(16)[None]
        made.append(MicroBatch(ids, places, torch.zeros_like(ids), ids.roll(-1, 1), TokenCounts(16, 16, 16)))
    return made


def train(source, lora, devices) -> tuple[list[float], dict[str, torch.Tensor], Decoder]:
    """Losses of two steps and of an evaluation, and the parameters after them."""
    training = TrainingConfig.from_proto(text_format.Parse(TEXT, training_pb2.TrainingConfig()))
    with torch.device("meta"):
        model = Decoder(DecoderConfig.from_folder(source))
        if lora:
            apply_lora(model, lora)
    parallelize(model, training, Precision.BF16, devices)
    materialize(model, source, devices.device, seed=0)
    optimizer = optimization.adamw(model, dataclasses.replace(training.optimizer, beta1=0.9, beta2=0.95))
    losses = []
    for _ in range(2):
        losses.append(optimization.forward_backward(model, micro_batches(), 1.0, devices).mean)
        optimization.clip_gradients(model, 1.0, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    losses.append(optimization.total_loss(model, micro_batches(), devices).mean)
    return losses, dict(model.named_parameters()), model


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_keeping_parameters_gathered_changes_no_number(lora, tmp_path, monkeypatch):
    source = write_tiny_llama(tmp_path)
    with process_group.connect() as devices:
        losses, parameters, model = train(source, lora, devices)
        assert not model.keeps_gathered
        monkeypatch.setattr(gathering, "_memory_of", lambda device: 10**12)
        kept_losses, kept_parameters, model = train(source, lora, devices)
        assert model.keeps_gathered
        assert kept_losses == losses
        assert losses[2] < losses[0]
        for name, parameter in parameters.items():
            kept = kept_parameters[name]
            assert isinstance(kept, DTensor) == isinstance(parameter, DTensor) == parameter.requires_grad
            values = [x.full_tensor() if isinstance(x, DTensor) else x for x in (kept, parameter)]
            assert torch.equal(*values), name


def test_exchanging_gradients_after_every_micro_batch_changes_no_loss(tmp_path, monkeypatch):
    source = write_tiny_llama(tmp_path)
    with process_group.connect() as devices:
        losses, _, model = train(source, None, devices)
        assert model.adds_up_whole_gradients
        monkeypatch.setattr(gathering, "adds_up_whole_gradients", lambda model, devices: False)
        exchanged_losses, _, model = train(source, None, devices)
        assert not model.adds_up_whole_gradients
        assert exchanged_losses == pytest.approx(losses, rel=1e-6)
