"""The gradients of a whole training step under each choice of kernels, held to FP32 by plain torch."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from finecut.tools.gpu_bench import training
from finecut.tools.gpu_bench.cases import Case
from finecut.tools.gpu_bench.documents import make_batch
from finecut.trainer.models.architecture import Experts
from finecut.trainer.models.lora import LoraConfig
from finecut.trainer.models.sharding import gather, local_part, named_parameters
from finecut.trainer.ops import kernels
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.planning.known_shapes import QWEN3_06B
from finecut.trainer.recipes import optimization

_SHAPE = dataclasses.replace(
    QWEN3_06B, vocabulary_size=5_000, hidden_size=256, intermediate_size=768, num_layers=2, num_heads=4, num_key_heads=2
)
_MIXTURE = dataclasses.replace(_SHAPE, family="qwen3_moe", experts=Experts(8, 2, 128, True, (0, 1)))
CASES = (
    Case("full", _SHAPE, block=1_024, median=100, micro_blocks=2, num_micro_batches=3),
    Case("experts", _MIXTURE, block=1_024, median=100, micro_blocks=2, num_micro_batches=3),
    Case("LoRA", _SHAPE, block=1_024, median=100, micro_blocks=2, num_micro_batches=3, lora=LoraConfig(rank=8)),
)
# Text format of TrainingConfig, by the name that is printed.
CHOICES = {
    "TORCH": "compile: false kernels: TORCH",
    "AUTO": "compile: false kernels: KERNELS_AUTO",
    "AUTO, recomputed": "compile: false kernels: KERNELS_AUTO activation_checkpointing: FULL",
    "AUTO, compiled": "compile: true kernels: KERNELS_AUTO",
    "AUTO, compiled, recomputed": "compile: true kernels: KERNELS_AUTO activation_checkpointing: FULL",
    "TRITON": "compile: false kernels: TRITON",
    "APEX": "compile: false kernels: APEX",
}


def gradients(case: Case, options: str, loss_scale: float, devices: Devices) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients, without the loss scale, of one step; the same weights and text each time."""
    torch.manual_seed(0)
    config = training.training_config(case, options, devices.world_size)
    kernels.use(config.kernels, devices.device)
    model = training.build(case, config, devices)
    random = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in named_parameters(model):
            if name.endswith("lora_b"):  # at zero nothing below it would have a gradient
                local_part(parameter).normal_(std=0.02)
    batches = [make_batch(case, random, devices.device).batch for _ in range(case.num_micro_batches)]
    loss = optimization.forward_backward(model, batches, loss_scale, devices)
    found = {
        name: gather(parameter.grad).float() / loss_scale
        for name, parameter in named_parameters(model)
        if parameter.grad is not None
    }
    return loss.mean, found


def error(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """Of the whole gradient, relative to its norm."""
    assert got.keys() == want.keys(), got.keys() ^ want.keys()
    square = sum(float((got[name] - want[name]).double().square().sum()) for name in want)
    return (square / sum(float(x.double().square().sum()) for x in want.values())) ** 0.5
