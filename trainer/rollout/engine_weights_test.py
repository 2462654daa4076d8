"""Fused and split matrices are cut into the tensors that the trainer knows, whatever the tensor-parallel size."""

import pytest
from torch import nn

from finecut.trainer.rollout import engine_weights
from finecut.trainer.rollout.checksums import combine, tensor_checksum
from finecut.trainer.rollout.testing_workers import TENSORS, model_of


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_workers_together_hold_the_trainers_tensors(size, monkeypatch):
    found = []
    for rank in range(size):
        monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_rank", lambda rank=rank: rank)
        found.append(engine_weights.weight_checksums(model_of(rank, size)))
    assert combine(found) == {name: tensor_checksum(tensor) for name, tensor in TENSORS.items()}


def test_a_layout_that_is_not_known_keeps_its_name(monkeypatch):
    monkeypatch.setattr("vllm.distributed.get_tensor_model_parallel_rank", lambda: 0)
    model = nn.Module()
    model.packed_modules_mapping = {"strange_proj": ["a", "b"]}
    model.strange_proj = nn.Linear(4, 4, bias=False)
    assert set(engine_weights.weight_checksums(model)) == {"strange_proj.weight"}
