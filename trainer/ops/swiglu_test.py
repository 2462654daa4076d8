"""Gated products are those of transformers' activations."""

import pytest
import torch
from transformers.activations import ACT2FN

from finecut.trainer.ops.swiglu import geglu, swiglu


@pytest.mark.parametrize(("product", "activation"), [(swiglu, "silu"), (geglu, "gelu_pytorch_tanh")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_transformers(product, activation, dtype):
    gate, up = torch.randn(2, 4, 32).to(dtype).requires_grad_(), torch.randn(2, 4, 32).to(dtype).requires_grad_()
    got, want = product(gate, up), ACT2FN[activation](gate) * up
    assert torch.equal(got, want)
    gradients = [torch.autograd.grad(y.sum(), (gate, up)) for y in (got, want)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
