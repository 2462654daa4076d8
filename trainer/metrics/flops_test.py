"""The formula equals what torch counts while it trains."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from finecut.trainer.metrics.flops import peak_of, step_flops
from finecut.trainer.models.logits import load_decoder
from finecut.trainer.models.lora import LoraConfig
from finecut.trainer.testing import write_tiny_llama

LENGTHS = (10, 1, 21)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    # A multiple of 64: the formula leaves out the head's padding, the counter does not.
    return write_tiny_llama(tmp_path_factory.mktemp("source"), vocabulary_size=512)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4), LoraConfig(rank=4, targets=("v_proj", "down_proj"))])
def test_equals_what_torch_counts(source, lora):
    model = load_decoder(source, lora=lora)
    ids = torch.randint(500, (1, sum(LENGTHS)))
    documents = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))[None]
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    targets = torch.where(torch.arange(ids.shape[1]) % 3 == 0, ids, -100)
    with FlopCounterMode(display=False) as counter:
        model(ids, positions, documents, targets).backward()
    counted = counter.get_flop_counts()["Global"]
    is_attention = [str(op).find("scaled_dot_product") >= 0 for op in counted]
    products = sum(count for count, skip in zip(counted.values(), is_attention, strict=True) if not skip)
    # torch counts attention without its mask; the formula's own count of pairs is held to the definition here.
    config = model.config
    pairs = sum(n * (n + 1) // 2 for n in LENGTHS)
    attention = 12 * config.num_layers * pairs * config.num_heads * config.head_size
    trained = int((targets >= 0).sum())
    assert step_flops(config, LENGTHS, trained, lora) - attention == pytest.approx(products, rel=1e-9)


def test_padding_counts_for_nothing_and_packing_changes_nothing(source):
    config = load_decoder(source).config
    apart = sum(step_flops(config, [n], n - 1, None) for n in (5, 9))
    assert step_flops(config, [5, 9], 12, None) == pytest.approx(apart)


def test_peaks_go_by_the_drivers_names():
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA GeForce RTX 4090") is None
