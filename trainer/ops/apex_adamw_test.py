"""The wrapper around Apex's kernel: a stand-in for the kernel computes what Apex documents, on the CPU."""

import sys
import types

import pytest
import torch
from torch import Tensor

from finecut.trainer.ops.apex_adamw import ApexAdamW

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}


def multi_tensor_adam(
    chunk_size: int, overflow: Tensor, lists: list[list[Tensor]], lr, beta1, beta2, eps, step, mode, correct, decay
) -> None:
    """Apex's contract: gradients, parameters, moments; mode 1 is AdamW; moments and parameters change in place."""
    assert (mode, correct, overflow.item()) == (1, 1, 0)
    for gradient, parameter, first, second in zip(*lists, strict=True):
        first.mul_(beta1).add_(gradient, alpha=1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        change = first / (1 - beta1**step) / ((second / (1 - beta2**step)).sqrt() + eps)
        parameter.sub_(lr * (change + decay * parameter))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    kernel = types.SimpleNamespace(multi_tensor_adam=multi_tensor_adam)
    apply = types.SimpleNamespace(multi_tensor_applier=lambda operation, *arguments: operation(2048, *arguments))
    monkeypatch.setitem(sys.modules, "amp_C", kernel)
    monkeypatch.setitem(sys.modules, "apex", types.SimpleNamespace(multi_tensor_apply=apply))
    monkeypatch.setitem(sys.modules, "apex.multi_tensor_apply", apply)


def train(kind: type[torch.optim.AdamW], steps: range, state: dict | None = None, weights: dict | None = None):
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    unused = torch.nn.Parameter(torch.ones(2))
    groups = [
        {"params": [model.weight, unused], "weight_decay": 0.1},
        {"params": [model.bias], "weight_decay": 0.0},
    ]
    optimizer = kind(groups, **SETTINGS)
    if state is not None and weights is not None:
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
    for step in steps:
        for parameter in model.parameters():
            generator = torch.Generator().manual_seed(step)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return model.state_dict(), optimizer.state_dict()


def test_equals_torchs_adamw():
    ours, _ = train(ApexAdamW, range(4))
    theirs, _ = train(torch.optim.AdamW, range(4))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name])


@pytest.mark.parametrize(
    ("first", "second"), [(ApexAdamW, torch.optim.AdamW), (torch.optim.AdamW, ApexAdamW), (ApexAdamW, ApexAdamW)]
)
def test_one_goes_on_from_the_others_state(first, second):
    whole, _ = train(torch.optim.AdamW, range(6))
    weights, state = train(first, range(3))
    ended, _ = train(second, range(3, 6), state, weights)
    for name in whole:
        torch.testing.assert_close(ended[name], whole[name])
