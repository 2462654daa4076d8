"""The norm is that of transformers' models, in every number format, with gradients."""

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from finecut.trainer.ops.norm import rms_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("module", "plus_one"), [(LlamaRMSNorm, False), (Gemma3RMSNorm, True)])
def test_equals_transformers(module, plus_one, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 48, generator=generator).to(dtype).requires_grad_()
    reference = module(48, eps=1e-3).to(dtype)
    with torch.no_grad():
        reference.weight.copy_(torch.randn(48, generator=generator))
    got, want = rms_norm(x, reference.weight, 1e-3, plus_one), reference(x)
    assert got.dtype == dtype and torch.equal(got, want)
    got_gradients, want_gradients = (
        torch.autograd.grad(y.float().square().sum(), (x, reference.weight)) for y in (got, want)
    )
    for a, b in zip(got_gradients, want_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-5)


def test_double_stays_double():
    x, weight = torch.randn(2, 8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    want = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, 0.1), want, rtol=0, atol=1e-15)
