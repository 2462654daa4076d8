"""The formula equals what torch counts while it trains."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from finecut.trainer.metrics.flops import step_flops
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.logits import load_decoder
from finecut.trainer.models.lora_config import LoraConfig
from finecut.trainer.testing import write_tiny_model

LENGTHS = (10, 1, 21)
# A multiple of 64: the formula leaves out the head's padding, the counter does not.
VOCABULARY = 512


def pairs(config: DecoderConfig) -> int:
    """Tokens and the keys that they see, over all layers, from the definition."""
    total = 0
    for layer in range(config.num_layers):
        window = config.local.window if config.local and config.is_local(layer) else max(LENGTHS)
        for length in LENGTHS:
            place = np.arange(length)
            distance = place[:, None] - place
            total += int(((distance >= 0) & (distance < window)).sum())
    return total


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4), LoraConfig(rank=4, targets=("v_proj", "o_proj"))])
def test_equals_what_torch_counts(family, lora, tmp_path):
    model = load_decoder(write_tiny_model(tmp_path, family, vocabulary_size=VOCABULARY), lora=lora)
    config = model.config
    ids = torch.randint(500, (1, sum(LENGTHS)))
    documents = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))[None]
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    targets = torch.where(torch.arange(ids.shape[1]) % 3 == 0, ids, -100)
    with FlopCounterMode(display=False) as counter:
        model(ids, positions, documents, targets).backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(count for op, count in counted.items() if "scaled_dot_product" not in str(op))
    # torch counts attention without its mask.
    attention = 12 * pairs(config) * config.num_heads * config.head_size
    trained = int((targets >= 0).sum())
    assert step_flops(config, LENGTHS, trained, model.lora) == pytest.approx(products + attention, rel=1e-9)


def test_packing_changes_nothing(tmp_path):
    config = load_decoder(write_tiny_model(tmp_path, "llama", vocabulary_size=VOCABULARY)).config
    apart = step_flops(config, [5], 4, None) + step_flops(config, [9], 8, None)
    assert step_flops(config, [5, 9], 12, None) == pytest.approx(apart)
