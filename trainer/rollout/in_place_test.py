"""Whole tensors land where each worker keeps its part of them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from finecut.trainer.rollout import in_place
from finecut.trainer.rollout.in_place import InPlace
from finecut.trainer.rollout.testing_workers import TENSORS, model_of


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_worker_gets_its_parts_replicas_included(size, monkeypatch):
    for rank in range(size):
        monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_rank", lambda rank=rank: rank)
        expected, model = model_of(rank, size), model_of(rank, size)
        rows = model.model.embed_tokens.shard_indices
        for name, parameter in model.named_parameters():
            own = parameter[: rows.org_vocab_end_index - rows.org_vocab_start_index] if "embed" in name else parameter
            own.data.zero_()  # what vLLM adds to the vocabulary is nobody's
        addresses = [parameter.data_ptr() for parameter in model.parameters()]
        target, tensors = InPlace(model), list(TENSORS.items())
        target.load_weights(tensors[:5])
        target.load_weights(iter(tensors[5:]))
        for (name, one), other in zip(model.named_parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, other), name
        assert addresses == [parameter.data_ptr() for parameter in model.parameters()]


def test_another_shape_is_refused_and_what_has_no_place_is_left_out(monkeypatch):
    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_rank", lambda: 0)
    target = InPlace(model_of(0, 1))
    target.load_weights([("model.layers.7.mlp.gate_proj.weight", torch.ones(2, 2))])
    with pytest.raises(ValueError, match=r"model.norm.weight came as \(1,\); the engine's is \(64,\)"):
        target.load_weights([("model.norm.weight", torch.ones(1))])


def test_models_that_vllm_processes_are_left_to_it():
    def model(method: str) -> nn.Module:
        made = nn.Sequential(nn.Linear(2, 2))
        made[0].quant_method = type(method, (SimpleNamespace,), {})()
        return made

    assert in_place.is_possible(nn.Linear(2, 2))
    assert in_place.is_possible(model("UnquantizedLinearMethod"))
    assert not in_place.is_possible(model("Fp8LinearMethod"))
