"""torch.compile of decoder layers, each by itself: they share their code, so it is compiled once a kind of layer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch._dynamo
from torch import nn

from finecut.proto.config import UserError

Backend = Callable[..., Callable[..., Any]]

# dynamo's own limit is 8; kinds of layer, evaluation without gradients and documents of one number each count.
_MAX_VARIANTS = 64


def compile_layers(layers: Iterable[nn.Module], device: torch.device, backend: str | Backend = "inductor") -> None:
    """Compiles each layer's forward, in place; names stay as they are and hooks stay outside.

    Raises UserError where there is no compiler for the code that torch.compile generates.
    """
    compilers = (
        (os.environ.get("CXX"), "g++", "clang++") if device.type == "cpu" else (os.environ.get("CC"), "gcc", "clang")
    )
    if not any(name and shutil.which(name) for name in compilers):
        raise UserError(
            f"training.compile: torch.compile needs a compiler on this host ({' or '.join(compilers[1:])});"
            " install one, or leave compile unset"
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_VARIANTS)
    for layer in layers:
        layer.forward = torch.compile(layer.forward, backend=backend)  # type: ignore[method-assign]
