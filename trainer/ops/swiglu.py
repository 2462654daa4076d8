"""The products of gated feed-forward layers (Shazeer, 2020)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up; all of one shape."""
    return functional.silu(gate) * up


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up with the tanh approximation of GELU (`gelu_pytorch_tanh`); all of one shape."""
    return functional.gelu(gate, approximate="tanh") * up
