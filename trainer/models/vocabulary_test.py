"""New tokens and semantic ids: where their rows are, what they start from, and that transformers reads the result."""

import dataclasses
import json

import pytest
import torch
import transformers

from finecut.dataprep import tokenization
from finecut.proto.config import UserError
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import materialize, save_model
from finecut.trainer.models.new_rows import NOISE
from finecut.trainer.models.tokenizer_files import copy_tokenizer
from finecut.trainer.models.vocabulary import grow
from finecut.trainer.testing import write_tiny_model

TOKENS = ("<tool>", "</tool>")


def build(source, config: DecoderConfig, seed: int = 0) -> Decoder:
    with torch.device("meta"):
        model = Decoder(config)
    materialize(model, source, "cpu", seed)
    return model.eval()


@torch.no_grad()
def logits(model: Decoder, input_ids: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    return model.logits(model(input_ids, positions, torch.zeros_like(input_ids)))


# 530 rows: 30 that the tokenizer of 500 does not use, as Qwen's checkpoints have them.
@pytest.mark.parametrize(("stored", "tied"), [(500, True), (500, False), (530, False)])
def test_old_rows_stay_and_new_ones_are_near_the_mean(stored, tied, tmp_path):
    source = write_tiny_model(tmp_path, "llama", vocab_size=stored, tie_word_embeddings=tied)
    old = build(source, DecoderConfig.from_folder(source))
    config = grow(old.config, source, TOKENS, 40)
    assert config.vocabulary_size == 542 and config.semantic_id_count == 40
    new = build(source, config)
    for before, after in zip(
        *([m.embedding.weight, *([] if tied else [m.head.weight])] for m in (old, new)), strict=True
    ):
        assert torch.equal(before[:500], after[:500]) and not after[542:].any()
        mean, deviation = before[:500].mean(0), before[:500].std(0, correction=0)
        noise = (after[500:542] - mean) / deviation
        assert noise.abs().max() < 6 * NOISE and noise.std().item() == pytest.approx(NOISE, rel=0.05)
    assert torch.equal(build(source, config).embedding.weight, new.embedding.weight)
    assert not torch.equal(build(source, config, seed=1).embedding.weight, new.embedding.weight)
    input_ids = torch.randint(500, (1, 30), generator=torch.Generator().manual_seed(0))
    assert torch.equal(logits(new, input_ids)[..., :500], logits(old, input_ids)[..., :500])


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3_text"])
def test_transformers_reads_the_grown_model_and_its_tokenizer(family, tmp_path):
    source = write_tiny_model(tmp_path / "source", family)
    config = grow(DecoderConfig.from_folder(source), source, TOKENS, 40)
    model, saved = build(source, config), tmp_path / "saved"
    save_model(model, saved, source, torch.float32)
    tokenization.load(source, added_tokens=TOKENS).save_pretrained(tmp_path / "tokenizer")
    copy_tokenizer(tmp_path / "tokenizer", saved)

    reference = transformers.AutoModelForCausalLM.from_pretrained(saved)
    assert reference.config.vocab_size == reference.get_input_embeddings().weight.shape[0] == 542
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    assert tokenizer("a<tool>b").input_ids.count(500) == 1
    assert tokenizer.decode([500, 501], skip_special_tokens=True) == "<tool></tool>"
    input_ids = torch.arange(490, 542)[None]
    with torch.no_grad():
        torch.testing.assert_close(logits(model, input_ids), reference(input_ids).logits, rtol=1e-4, atol=1e-4)
    again = DecoderConfig.from_folder(saved)
    assert again == dataclasses.replace(config, new_rows=None)
    assert grow(again, saved, (), 40) == again


def test_what_would_move_ids_is_refused(tmp_path):
    source = write_tiny_model(tmp_path, "llama")
    config = DecoderConfig.from_folder(source)
    assert grow(config, source, (), 0) is config
    with_ids = dataclasses.replace(config, semantic_id_count=40)
    with pytest.raises(UserError, match=r"semantic_id_count: the model has 40 semantic ids already"):
        grow(with_ids, source, (), 41)
    with pytest.raises(UserError, match=r"added_tokens: the model has 40 semantic ids already"):
        grow(with_ids, source, TOKENS, 40)
    present = next(iter(json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]))
    with pytest.raises(UserError, match=r"added_tokens: .*in the vocabulary of .* already"):
        grow(config, source, (present,), 0)
    with pytest.raises(UserError, match=r"named twice"):
        grow(config, source, ("<a>", "<a>"), 0)
