"""Norm, rotation, gated product and optimizer by each library: error against FP32, and GB/s."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from finecut.tools.gpu_bench.timing import milliseconds
from finecut.trainer.config import OptimizerConfig
from finecut.trainer.ops import kernels
from finecut.trainer.ops.kernels import Kernels
from finecut.trainer.ops.norm import rms_norm
from finecut.trainer.ops.rotary import Rotation, rotate
from finecut.trainer.ops.swiglu import geglu, swiglu
from finecut.trainer.recipes import optimization

TOKENS = 16_384


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_()


def _rotation() -> Rotation:
    angle = torch.rand(1, TOKENS, 1, 64, device="cuda") * 100
    return Rotation(angle.cos(), angle.sin())


def _rotate(q: Tensor, k: Tensor, rotation: Rotation) -> Tensor:
    # As in the decoder, the kernels may write over what a projection made.
    return torch.cat([x.flatten(2) for x in rotate(q * 1, k * 1, rotation)], dim=-1)


def operations() -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Each function and its inputs, at the sizes of a 4,096-wide model."""
    rotation = _rotation()
    return {
        "RMS norm": (lambda x, w: rms_norm(x, w, 1e-6), (_random(TOKENS, 4_096), _random(4_096))),
        "RMS norm, 1 + w": (lambda x, w: rms_norm(x, w, 1e-6, True), (_random(TOKENS, 4_096), _random(4_096))),
        "RMS norm of heads": (lambda x, w: rms_norm(x, w, 1e-6), (_random(TOKENS, 16, 128), _random(128))),
        "rotation": (lambda q, k: _rotate(q, k, rotation), (_random(1, TOKENS, 16, 128), _random(1, TOKENS, 8, 128))),
        "SwiGLU": (swiglu, (_random(TOKENS, 12_288), _random(TOKENS, 12_288))),
        "GeGLU": (geglu, (_random(TOKENS, 12_288), _random(TOKENS, 12_288))),
    }


def measure(choice: Kernels, compiled: bool = False) -> dict[str, tuple[float, float, float]]:
    """By operation: the largest relative error of result and gradients, ms forward, ms forward and backward."""
    kernels.use(choice, torch.device("cuda"))
    found = {}
    for name, (function, inputs) in operations().items():
        called = torch.compile(function) if compiled else function
        direction = torch.randn_like(function(*inputs))
        wide = [x.detach().float().requires_grad_() for x in inputs]
        kernels.use(Kernels.TORCH, torch.device("cuda"))
        want = function(*wide)
        want_gradients = torch.autograd.grad(want, wide, direction.float())
        del wide
        kernels.use(choice, torch.device("cuda"))
        got = called(*inputs)
        got_gradients = torch.autograd.grad(got, inputs, direction)
        pairs = [(got, want), *zip(got_gradients, want_gradients, strict=True)]
        error = max(float((a.float() - b).norm() / b.norm()) for a, b in pairs)
        del got, want, got_gradients, want_gradients, pairs

        def both(
            called: Callable[..., Tensor] = called, inputs: tuple[Tensor, ...] = inputs, direction: Tensor = direction
        ) -> None:
            torch.autograd.grad(called(*inputs), inputs, direction)

        found[name] = (error, milliseconds(functools.partial(called, *inputs)), milliseconds(both))
    return found


def adamw(choice: Kernels) -> tuple[float, float]:
    """GB/s of a step over 268M FP32 parameters, and the largest difference from torch's own after three steps."""
    config = OptimizerConfig(1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0)
    models = []
    for kind in (Kernels.TORCH, choice):
        kernels.use(kind, torch.device("cuda"))
        torch.manual_seed(0)
        model = torch.nn.Linear(16_384, 16_384, device="cuda")
        optimizer = optimization.adamw(model, config)
        generator = torch.Generator("cuda").manual_seed(1)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, device="cuda", generator=generator)
            optimizer.step()
        models.append(model)
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    return models[1].weight.numel() * 28 / milliseconds(optimizer.step) / 1e6, difference
