"""What AUTO means, and the type in which frozen parameters are kept."""

import pytest
import torch
from torch import nn

from finecut.proto import training_pb2
from finecut.trainer.config import ParallelismConfig, Precision
from finecut.trainer.parallel.precision import narrow_frozen, policy, remarks, resolve

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "family", "precision"),
    [
        (CPU, "llama", Precision.FP32),
        (CPU, "gemma3_text", Precision.FP32),
        (GPU, "llama", Precision.FP16),
        (GPU, "gemma3_text", Precision.BF16),
    ],
)
def test_auto_goes_by_device_and_family(device, family, precision):
    assert resolve(Precision.AUTO, device, family) is precision


def test_a_choice_that_may_surprise_is_told():
    assert "BF16 here: activations of gemma3_text" in remarks(Precision.AUTO, Precision.BF16, "gemma3_text")[0]
    assert remarks(Precision.AUTO, Precision.FP16, "llama") == remarks(Precision.BF16, Precision.BF16, "llama") == []


def test_what_is_asked_for_is_taken():
    assert resolve(Precision.FP16, GPU, "gemma3_text") is Precision.FP16
    assert resolve(Precision.BF16, CPU, "llama") is Precision.BF16


def test_only_frozen_parameters_are_narrowed():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    narrow_frozen(model, Precision.BF16)
    assert [parameter.dtype for parameter in model.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 2


def test_gradients_are_summed_in_fp32_unless_asked_otherwise():
    assert policy(Precision.BF16).reduce_dtype is torch.float32
    assert policy(Precision.BF16, narrow_gradients=True).reduce_dtype is torch.bfloat16
    asked = ParallelismConfig.from_proto(training_pb2.Parallelism(gradient_format="GRADIENT_BF16"))
    assert asked.narrow_gradients and not ParallelismConfig.from_proto(training_pb2.Parallelism()).narrow_gradients
