"""Compiled layers compute what eager ones do, and batches with other documents compile nothing anew."""

import shutil

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from finecut.proto.config import UserError
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.logits import load_decoder
from finecut.trainer.models.lora import LoraConfig
from finecut.trainer.parallel.compilation import compile_layers
from finecut.trainer.testing import write_tiny_model

CPU, TOKENS = torch.device("cpu"), 32


def batch(lengths: list[int]) -> tuple[torch.Tensor, ...]:
    """Ids, positions, documents and targets of one row."""
    ids = torch.randint(500, (1, TOKENS), generator=torch.Generator().manual_seed(len(lengths)))
    documents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return ids, positions, documents, ids.roll(-1, 1)


def step(model: Decoder, lengths: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(*batch(lengths))
    loss.backward()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class CountingBackend:
    """Traces forward and backward as Inductor would have them, runs them eagerly, and counts."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module, inputs):
        self.graphs += 1
        return aot_eager(module, inputs)


@pytest.mark.parametrize(("family", "lora"), [("llama", LoraConfig(rank=4)), ("gemma3_text", None)])
def test_equals_eager_and_is_compiled_once_for_all_batches(family, lora, tmp_path):
    source = write_tiny_model(tmp_path, family)
    eager, compiled = (load_decoder(source, lora=lora).train() for _ in range(2))
    backend = CountingBackend()
    compile_layers(compiled.layers, CPU, backend)
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in eager.named_parameters()]
    graphs = []
    for lengths in ([32], [10, 22], [1, 4, 27], [5] * 6 + [2]):
        want, want_gradients = step(eager, lengths)
        got, got_gradients = step(compiled, lengths)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        for name, gradient in want_gradients.items():
            torch.testing.assert_close(got_gradients[name], gradient, rtol=1e-3, atol=1e-3, msg=name)
        graphs.append(backend.graphs)
    assert graphs[0] > 0
    assert graphs[-1] == graphs[0]


def test_a_host_without_a_compiler_is_told_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"training.compile: torch.compile needs a compiler on this host \(g\+\+"):
        compile_layers([], CPU)
