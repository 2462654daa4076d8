"""The mixture of experts against its definition: every token by itself, its experts one after the other."""

import pytest
import torch
from torch.nn import functional

from finecut.trainer.models.architecture import Experts
from finecut.trainer.models.mixture import MixtureOfExperts, grouped_linear


def mixture(normalized: bool = True) -> MixtureOfExperts:
    torch.manual_seed(0)
    model = MixtureOfExperts(16, Experts(count=5, chosen=2, intermediate_size=24, normalized=normalized, layers=(0,)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double()


def by_definition(model: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    experts, outputs = model.experts, []
    for token in x.flatten(0, 1):
        shares = (model.router.weight @ token).softmax(-1)
        best = shares.argsort(descending=True)[: model.chosen]
        total = shares[best].sum() if model.normalized else 1
        parts = [
            shares[e]
            / total
            * (experts.down_proj[e] @ (functional.silu(experts.gate_proj[e] @ token) * (experts.up_proj[e] @ token)))
            for e in best
        ]
        outputs.append(sum(parts))
    return torch.stack(outputs).view(x.shape)


@pytest.mark.parametrize("normalized", [True, False])
def test_equals_its_definition_with_gradients(normalized):
    model = mixture(normalized)
    x = torch.randn(2, 9, 16, dtype=torch.float64, requires_grad=True)
    got, want = model(x), by_definition(model, x)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    inputs = (x, *model.parameters())
    gradients = [torch.autograd.grad(y.square().sum(), inputs) for y in (got, want)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_an_expert_that_no_token_chose_has_a_zero_gradient():
    """Zero and not none: ranks of a sharded model reduce the same gradients whatever their tokens."""
    model = mixture()
    model(torch.randn(1, 1, 16, dtype=torch.float64)).sum().backward()
    used = model.experts.down_proj.grad.flatten(1).abs().amax(1) > 0
    assert used.sum() == 2


def test_one_grouped_product_equals_many():
    """The product that GPUs run in one kernel."""
    x, weight = torch.randn(12, 16), torch.randn(4, 8, 16)
    counts = torch.tensor([5, 0, 4, 3])
    want = torch.cat([part @ w.T for part, w in zip(x.split(counts.tolist()), weight, strict=True)])
    torch.testing.assert_close(grouped_linear(x, weight, counts), want)
    if hasattr(torch, "_grouped_mm"):
        got = torch._grouped_mm(x.bfloat16(), weight.bfloat16().mT, offs=counts.cumsum(0, dtype=torch.int32))
        torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0.05)


def test_autocast_reaches_the_experts():
    model = mixture().float()
    x = torch.randn(1, 6, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
        assert grouped_linear(x[0], model.experts.gate_proj, torch.tensor([6, 0, 0, 0, 0])).dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), model(x), rtol=0.1, atol=0.1)
