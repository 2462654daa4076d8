"""Parameters are counted exactly, for every family, with adapters and with other heads."""

import pytest
import torch

from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.families.registry import FAMILIES
from finecut.trainer.models.lora import apply_lora
from finecut.trainer.models.lora_config import LoraConfig
from finecut.trainer.planning import shapes
from finecut.trainer.testing import write_tiny_model


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DecoderConfig:
    return DecoderConfig.from_folder(write_tiny_model(tmp_path_factory.mktemp(request.param), request.param))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4), LoraConfig(rank=2, targets=("v_proj", "o_proj"))])
@pytest.mark.parametrize("num_outputs", [None, 1, 70])
def test_equals_the_modules_own(config: DecoderConfig, lora: LoraConfig | None, num_outputs: int | None) -> None:
    with torch.device("meta"):
        model = Decoder(config, output_head=OutputHead(num_outputs) if num_outputs else None)
        if lora:
            apply_lora(model, lora)
    counted = shapes.count(config, lora, num_outputs)
    parameters = dict(model.named_parameters())
    assert counted.total == sum(p.numel() for p in parameters.values())
    assert counted.trained == sum(p.numel() for p in parameters.values() if p.requires_grad)
    assert counted.layers == tuple(sum(p.numel() for p in layer.parameters()) for layer in model.layers)
    exported = [torch.Size(model.exported_shape(name, p)).numel() for name, p in parameters.items()]
    if num_outputs is None and lora is None:
        assert counted.stored == sum(exported)
