"""Moments in host memory: the same steps, bit by bit, and a state that goes in and out."""

import copy

import torch
from torch import nn

from finecut.trainer.parallel.offloaded_adamw import OffloadedAdamW


def groups(model: nn.Module) -> list[dict]:
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    model(torch.randn(8, 6, generator=generator)).square().sum().backward()
    optimizer.step()


def assert_same(model: nn.Module, other: nn.Module) -> None:
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_steps_are_those_of_adamw_bit_by_bit():
    plain = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    model = copy.deepcopy(plain)
    settings = {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-6}
    expected, optimizer = torch.optim.AdamW(groups(plain), **settings), OffloadedAdamW(groups(model), **settings)
    for seed in range(4):
        step(plain, expected, seed)
        step(model, optimizer, seed)
    assert_same(model, plain)
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert optimizer.state[parameter].keys() == expected.state[other].keys()
        for name, value in optimizer.state[parameter].items():
            assert torch.equal(value, expected.state[other][name]), name


def test_a_run_goes_on_with_either_optimizer():
    start = nn.Linear(6, 5)
    whole = copy.deepcopy(start)
    optimizer = torch.optim.AdamW(groups(whole), lr=1e-2)
    for seed in range(4):
        step(whole, optimizer, seed)
    for first, second in ((torch.optim.AdamW, OffloadedAdamW), (OffloadedAdamW, torch.optim.AdamW)):
        model = copy.deepcopy(start)
        before = first(groups(model), lr=1e-2)
        for seed in range(2):
            step(model, before, seed)
        after = second(groups(model), lr=1e-2)
        after.load_state_dict(copy.deepcopy(before.state_dict()))
        for seed in range(2, 4):
            step(model, after, seed)
        assert_same(model, whole)


def test_parameters_without_a_gradient_are_left_alone():
    model = nn.Linear(6, 5)
    before = model.bias.detach().clone()
    optimizer = OffloadedAdamW(model.parameters(), lr=1e-2)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert torch.equal(model.bias, before) and model.bias not in optimizer.state
