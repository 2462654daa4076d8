"""The products of gated feed-forward layers (Shazeer, 2020)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from finecut.trainer.ops import kernels
from finecut.trainer.ops.kernels import Kernels, Op


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up; all of one shape."""
    if kernels.takes(Op.GATED_PRODUCT, gate, up) is Kernels.TRITON:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        return LigerSiLUMulFunction.apply(gate, up)
    return functional.silu(gate) * up


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up with the tanh approximation of GELU (`gelu_pytorch_tanh`); all of one shape."""
    if kernels.takes(Op.GATED_PRODUCT, gate, up) is Kernels.TRITON:
        from liger_kernel.ops.geglu import LigerGELUMulFunction

        return LigerGELUMulFunction.apply(gate, up)
    return functional.gelu(gate, approximate="tanh") * up
