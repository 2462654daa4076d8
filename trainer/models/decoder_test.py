"""The decoder on packed batches: documents are independent, padding is harmless, the loss is the plain one."""

import pytest
import torch
from torch.nn import functional

from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.logits import load_decoder
from finecut.trainer.testing import write_tiny_llama

LENGTHS = (10, 1, 17, -4)  # -4 is padding
TOKENS = 32


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("source"))


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    input_ids = torch.randint(500, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    documents = [i if n > 0 else -1 for i, n in enumerate(LENGTHS) for _ in range(abs(n))]
    positions = [p if n > 0 else 0 for n in LENGTHS for p in range(abs(n))]
    return input_ids, torch.tensor([positions]), torch.tensor([documents])


def targets_of(input_ids: torch.Tensor, document_ids: torch.Tensor) -> torch.Tensor:
    """The next token of the same document."""
    targets = torch.full_like(input_ids, -100)
    same = (document_ids[:, 1:] == document_ids[:, :-1]) & (document_ids[:, 1:] >= 0)
    targets[:, :-1] = torch.where(same, input_ids[:, 1:], -100)
    return targets


def gradients(model: Decoder) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def test_packed_documents_equal_documents_alone(source):
    """Loss and every gradient; this is the promise that packing rests on."""
    model = load_decoder(source).double()
    input_ids, position_ids, document_ids = batch()
    targets = targets_of(input_ids, document_ids)
    packed = model(input_ids, position_ids, document_ids, targets)
    packed.backward()
    packed_gradients = gradients(model)

    begin, alone = 0, torch.zeros((), dtype=torch.float64)
    for length in (n for n in LENGTHS if n > 0):
        part = slice(begin, begin + length)
        logits = model.logits(model(input_ids[:, part], position_ids[:, part], torch.zeros(1, length).long()))
        alone = alone + functional.cross_entropy(logits.double()[0], targets[0, part], reduction="sum")
        begin += length
    alone.backward()
    torch.testing.assert_close(packed, alone, rtol=1e-6, atol=0)
    for name, gradient in gradients(model).items():
        # `logits` rounds to FP32 on the way.
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_padding_tokens_change_nothing(source):
    model = load_decoder(source)
    input_ids, position_ids, document_ids = batch()
    targets = targets_of(input_ids, document_ids)
    losses, found = [], []
    for filler in (0, 499):
        padded = input_ids.masked_fill(document_ids < 0, filler)
        loss = model(padded, position_ids, document_ids, targets)
        loss.backward()
        losses.append(loss.item())
        found.append(gradients(model))
    assert losses[0] == losses[1]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_block_of_padding_alone_gives_zero_loss_and_zero_gradients(source):
    model = load_decoder(source)
    filler = torch.zeros(1, TOKENS).long()
    loss = model(filler, filler, filler - 1, filler - 100)
    loss.backward()
    assert loss.item() == 0
    assert all(gradient.abs().max() == 0 for gradient in gradients(model).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("by", ["cast", "autocast"])
def test_low_precision_is_near_fp32(by, dtype, source):
    model = load_decoder(source)
    input_ids, position_ids, document_ids = batch()
    targets = targets_of(input_ids, document_ids)
    exact = model(input_ids, position_ids, document_ids, targets).item()
    if by == "cast":
        loss = model.to(dtype)(input_ids, position_ids, document_ids, targets)
    else:
        with torch.autocast("cpu", dtype):
            loss = model(input_ids, position_ids, document_ids, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.03)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_stay_exact_in_low_precision(dtype, source):
    """In BF16 itself, position 4,001 would be 4,000: a document moved by one would not notice."""
    model = load_decoder(source).to(dtype)
    seen = []
    model.layers[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1].rotation))
    ids = torch.zeros(1, 2).long()
    model(ids, torch.tensor([[4_000, 4_001]]), ids)
    assert seen[0].cos.dtype == torch.float32
    assert (seen[0].cos[0, 0] - seen[0].cos[0, 1]).abs().max() > 0.1


def test_meta_device_gives_shapes_without_memory(source):
    config = load_decoder(source).config
    with torch.device("meta"):
        model = Decoder(config)
    assert all(p.is_meta and p.dtype == torch.float32 for p in model.parameters())
    assert not list(model.buffers())
    assert model.head_weight().shape == (512, 64)
