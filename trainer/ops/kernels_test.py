"""Who computes: what is asked for and cannot run is refused; AUTO takes what is there."""

from collections.abc import Iterator

import pytest
import torch

from finecut.proto.config import UserError
from finecut.trainer.ops import kernels
from finecut.trainer.ops.kernels import FASTEST, Kernels, Op

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def choice_of_before() -> Iterator[None]:
    yield
    kernels.use(Kernels.TORCH, CPU)


@pytest.mark.parametrize("choice", [Kernels.TRITON, Kernels.APEX])
def test_a_cpu_has_neither_triton_nor_apex(choice):
    with pytest.raises(UserError, match=rf"training.kernels: {choice.name} needs a GPU; use KERNELS_AUTO or TORCH"):
        kernels.use(choice, CPU)


@pytest.mark.parametrize(("choice", "module"), [(Kernels.TRITON, "liger_kernel"), (Kernels.APEX, "amp_C")])
def test_names_the_module_that_is_missing(choice, module, monkeypatch):
    monkeypatch.setattr(kernels, "_is_importable", lambda name: name != module)
    with pytest.raises(UserError, match=rf"{choice.name} needs .*, and {module} cannot be imported; install it"):
        kernels.use(choice, GPU)


@pytest.mark.parametrize("choice", [Kernels.AUTO, Kernels.TORCH])
def test_on_a_cpu_torch_computes(choice):
    kernels.use(choice, CPU)
    assert all(kernels.takes(op, torch.ones(1)) is Kernels.TORCH for op in Op)


class OnGpu:
    """As much of a tensor on a GPU as the choice looks at."""

    is_cuda, dtype = True, torch.bfloat16


@pytest.mark.parametrize(
    ("choice", "apart"),
    [
        (Kernels.TORCH, {}),
        (Kernels.TRITON, {Op.RMS_NORM: "TRITON", Op.ROTARY: "TRITON", Op.GATED_PRODUCT: "TRITON"}),
        (Kernels.APEX, {Op.RMS_NORM: "APEX", Op.ADAMW: "APEX"}),
    ],
)
def test_a_library_computes_what_it_has_and_torch_the_rest(choice, apart, monkeypatch):
    monkeypatch.setattr(kernels, "_active", choice)
    assert {op: kernels.takes(op, OnGpu()).name for op in Op} == {op: "TORCH" for op in Op} | apart


@pytest.mark.parametrize("is_there", [True, False])
def test_auto_takes_the_fastest_that_is_installed(is_there, monkeypatch):
    monkeypatch.setattr(kernels, "_active", Kernels.AUTO)
    monkeypatch.setattr(kernels, "_installed", {})
    monkeypatch.setattr(kernels, "_is_importable", lambda name: is_there)
    for op in Op:
        assert kernels.takes(op, OnGpu()) is (FASTEST[op] if is_there else Kernels.TORCH)
