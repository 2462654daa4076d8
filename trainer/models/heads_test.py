"""Output heads: what they compute, and that transformers and peft read them."""

import peft
import pytest
import torch
import transformers
from torch.nn import functional

from finecut.proto.config import UserError
from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.heads import read_output_head
from finecut.trainer.models.huggingface import locate_model, materialize, save_adapter, save_model
from finecut.trainer.models.lora import LoraConfig, apply_lora, lora_layers
from finecut.trainer.testing import FAMILIES, write_tiny_model

SCALAR, RANKING = OutputHead(1, initial_std=0.5), OutputHead(100, initial_std=0.5)


def build(source, head: OutputHead | None, lora: LoraConfig | None = None) -> Decoder:
    found = locate_model(source)
    with torch.device("meta"):
        model = Decoder(DecoderConfig.from_folder(found.base), output_head=head)
    if lora:
        apply_lora(model, lora)
    materialize(model, found, "cpu", seed=0)
    return model.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two documents in a row."""
    input_ids = torch.randint(3, 500, (1, 24), generator=torch.Generator().manual_seed(0))
    return input_ids, torch.tensor([[*range(10), *range(14)]]), torch.tensor([[0] * 10 + [1] * 14])


@torch.no_grad()
def last_outputs(reference, input_ids: torch.Tensor) -> torch.Tensor:
    """A classifier of transformers answers for the last token of a row."""
    return torch.cat([reference(part).logits for part in (input_ids[:, :10], input_ids[:, 10:])])


@pytest.mark.parametrize("head", [SCALAR, RANKING], ids=["scalar", "ranking"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_head(family, head, tmp_path):
    source = write_tiny_model(tmp_path / "source", family)
    model = build(source, head)
    save_model(model, tmp_path / "saved", source, torch.float32)
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert reference.config.num_labels == head.num_outputs
    with torch.no_grad():
        outputs = model(*batch())
    assert outputs.dtype == torch.float32 and outputs.shape == (1, 24) + (() if head.is_scalar else (100,))
    want = last_outputs(reference, batch()[0])
    torch.testing.assert_close(outputs[0, [9, 23]].view(want.shape), want, rtol=1e-4, atol=1e-4)
    assert outputs.std() > 0.1

    found = read_output_head(tmp_path / "saved")
    assert found == OutputHead(head.num_outputs) and read_output_head(source) is None
    with torch.no_grad():
        assert torch.equal(build(tmp_path / "saved", found)(*batch()), outputs)


def test_a_new_scalar_head_says_zero_and_learns(tmp_path):
    model = build(write_tiny_model(tmp_path, "llama", tie_word_embeddings=True), OutputHead(1))
    outputs = model(*batch())
    assert not outputs.any()
    outputs.sum().backward()
    assert model.score.weight.grad.abs().max() > 0 and not hasattr(model, "head")


def test_the_loss_of_a_ranking_head_is_over_items(tmp_path):
    model = build(write_tiny_model(tmp_path, "llama"), RANKING)
    items = torch.full((1, 24), -100)
    items[0, 5], items[0, 20] = 99, 3
    scores = model(*batch())
    want = functional.cross_entropy(scores[0, [5, 20]], torch.tensor([99, 3]), reduction="sum")
    loss = model(*batch(), items)
    torch.testing.assert_close(loss, want)
    loss.backward()
    assert model.score.weight.shape == (128, 64) and not model.score.weight.grad[100:].any()


def test_the_head_is_trained_and_saved_beside_adapters(tmp_path):
    source = write_tiny_model(tmp_path / "source", "llama")
    model = build(source, SCALAR, LoraConfig(rank=4))
    assert model.score.weight.requires_grad and not model.embedding.weight.requires_grad
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_b.normal_(std=0.1)
        outputs = model(*batch())
    save_adapter(model, tmp_path / "adapter", str(source))
    with torch.no_grad():
        assert torch.equal(build(tmp_path / "adapter", SCALAR, LoraConfig(rank=4))(*batch()), outputs)
        torch.testing.assert_close(build(tmp_path / "adapter", SCALAR)(*batch()), outputs, rtol=1e-4, atol=1e-4)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    with_peft = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    want = last_outputs(with_peft, batch()[0])[:, 0]
    torch.testing.assert_close(outputs[0, [9, 23]], want, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"has an output head"):
        build(tmp_path / "adapter", None)


def test_a_head_of_another_size_is_refused(tmp_path):
    source = write_tiny_model(tmp_path / "source", "llama")
    save_model(build(source, RANKING), tmp_path / "saved", source, torch.float32)
    with pytest.raises(UserError, match=r"score.weight is \(100, 64\), not \(1, 64\)"):
        build(tmp_path / "saved", SCALAR)
    with pytest.raises(UserError, match=r"missing: lm_head.weight; unknown: score.weight"):
        build(tmp_path / "saved", None)
