"""What is kept and what is computed again."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from finecut.trainer.config import ActivationCheckpointing
from finecut.trainer.parallel.activation_checkpointing import checkpoint_layers


class Layer(nn.Module):
    """A norm and a feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(32)
        self.up = nn.Linear(32, 64, bias=False)
        self.down = nn.Linear(64, 32, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.silu(self.up(self.norm(x))))


class Count(TorchDispatchMode):
    """How often each operation ran."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.calls[str(operation)] = self.calls.get(str(operation), 0) + 1
        return operation(*args, **kwargs or {})


def run(mode: ActivationCheckpointing) -> tuple[list[torch.Tensor], int, dict[str, int]]:
    """Gradients, bytes kept for the backward pass, and operations run, of three layers."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Layer() for _ in range(3)))
    checkpoint_layers(model, mode)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(64, 32, requires_grad=True)
    with Count() as count, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()], sum(kept.values()), count.calls


def test_all_modes_give_the_same_gradients():
    expected, *_ = run(ActivationCheckpointing.OFF)
    for mode in (ActivationCheckpointing.SELECTIVE, ActivationCheckpointing.FULL):
        gradients, *_ = run(mode)
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


# Three layers: two products forward, four in the backward pass, and where all is computed again, all but the last.
@pytest.mark.parametrize(
    "mode, products, activations",
    [
        (ActivationCheckpointing.OFF, 6 + 12, 3),
        (ActivationCheckpointing.SELECTIVE, 6 + 12, 6),
        (ActivationCheckpointing.FULL, 6 + 12 + 3, 6),
    ],
)
def test_selective_recomputes_what_is_cheap_and_full_everything(mode, products, activations):
    _, _, calls = run(mode)
    assert calls["aten.mm.default"] == products
    assert calls["aten.silu.default"] == activations


def test_checkpointing_keeps_less():
    off, full = (run(mode)[1] for mode in (ActivationCheckpointing.OFF, ActivationCheckpointing.FULL))
    assert full < 0.5 * off


def test_names_stay_as_they_are():
    model = nn.Sequential(Layer(), Layer())
    names = [name for name, _ in model.named_parameters()]
    checkpoint_layers(model, ActivationCheckpointing.SELECTIVE)
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile generates C++ for a CPU")
def test_selective_keeps_the_result_of_a_compiled_function():
    runs = 0

    @torch.library.custom_op("finecut_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        nonlocal runs
        runs += 1
        return 2 * x

    double.register_fake(torch.empty_like)
    double.register_autograd(lambda context, gradient: 2 * gradient)

    class Compiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.function = torch.compile(lambda x: double(x.sin()).exp(), fullgraph=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.function(x).relu()

    x = torch.randn(4, 8, requires_grad=True)
    for mode, expected in ((ActivationCheckpointing.FULL, 2), (ActivationCheckpointing.SELECTIVE, 1)):
        layer = Compiled()
        checkpoint_layers([layer], mode)
        runs = 0
        layer(x).sum().backward()
        assert runs == expected, mode
