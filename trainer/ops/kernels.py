"""Which library computes norms, rotary positions, gated products, attention and the optimizer.

One choice for the whole process, made by `use` before training, because every layer shares it. The functions of this
folder ask `takes` and fall back to plain torch: on a CPU, inside torch.compile (which fuses plain torch better than it
handles foreign kernels), and for operations that a library does not have.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util

import torch
from torch import Tensor

from finecut.proto.config import UserError
from finecut.trainer.ops import flash_attention


class Kernels(enum.Enum):
    """Who computes. AUTO: what was measured fastest; see `FASTEST`."""

    AUTO = "auto"
    TORCH = "torch"
    TRITON = "triton"
    APEX = "apex"


class Op(enum.Enum):
    """What has more than one implementation; attention has a module of its own."""

    RMS_NORM = "RMS norm"
    ROTARY = "rotary positions"
    GATED_PRODUCT = "gated products"
    ADAMW = "AdamW"


# What AUTO takes on a GPU in layers that are not compiled: the fastest that needs no compilation. Inductor's kernels,
# which compiled layers have, are faster still. docs/performance.md, "Kernels", has the measurement behind each line.
FASTEST = {
    Op.RMS_NORM: Kernels.TRITON,
    Op.ROTARY: Kernels.TRITON,
    Op.GATED_PRODUCT: Kernels.TRITON,
    Op.ADAMW: Kernels.TORCH,
}

# What a library has beside plain torch.
_PROVIDES = {
    Kernels.TRITON: {Op.RMS_NORM, Op.ROTARY, Op.GATED_PRODUCT},
    Kernels.APEX: {Op.RMS_NORM, Op.ADAMW},
}
# Modules that must be importable, and what to install.
_MODULES = {
    Kernels.TRITON: (("triton", "liger_kernel"), "liger-kernel"),
    Kernels.APEX: (("apex", "amp_C", "fused_layer_norm_cuda"), "NVIDIA Apex with its CUDA extensions"),
}

_active = Kernels.TORCH


def use(kernels: Kernels, device: torch.device) -> None:
    """Chooses for this process. Raises UserError where TRITON or APEX is asked for and cannot run."""
    global _active
    if kernels in _MODULES:
        modules, package = _MODULES[kernels]
        name = kernels.name
        if device.type != "cuda":
            raise UserError(f"training.kernels: {name} needs a GPU; use KERNELS_AUTO or TORCH on a {device.type}")
        if missing := [module for module in modules if not _is_importable(module)]:
            raise UserError(
                f"training.kernels: {name} needs {package}, and {', '.join(missing)} cannot be imported;"
                " install it, or use KERNELS_AUTO"
            )
    _active = kernels
    if kernels in (Kernels.AUTO, Kernels.APEX):
        flash_attention.prepare(device)


def active() -> Kernels:
    """The choice of this process."""
    return _active


def takes(op: Op, *tensors: Tensor) -> Kernels:
    """Who computes `op` on these tensors: TORCH, TRITON or APEX."""
    if _active is Kernels.TORCH or not all(tensor.is_cuda for tensor in tensors):
        return Kernels.TORCH
    if torch.compiler.is_compiling() or any(tensor.dtype == torch.float64 for tensor in tensors):
        return Kernels.TORCH
    if _active is Kernels.AUTO:
        fastest = FASTEST[op]
        return fastest if fastest is Kernels.TORCH or _is_installed(fastest) else Kernels.TORCH
    return _active if op in _PROVIDES[_active] else Kernels.TORCH


_installed: dict[Kernels, bool] = {}


def _is_installed(kernels: Kernels) -> bool:
    if kernels not in _installed:
        _installed[kernels] = all(_is_importable(module) for module in _MODULES[kernels][0])
    return _installed[kernels]


def _is_importable(module: str) -> bool:
    if importlib.util.find_spec(module) is None:
        return False
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError):  # built for another torch, or without a driver
        return False
    return True
