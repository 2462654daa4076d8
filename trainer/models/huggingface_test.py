"""Hugging Face weights in and out: our logits are those of transformers, and what goes in comes out bit for bit."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from finecut.proto.config import UserError
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import locate_model, materialize, save_model
from finecut.trainer.testing import LLAMA3_ROPE, write_tiny_llama

VARIANTS = {
    "default": {},
    "tied": {"tie_word_embeddings": True},
    "llama3-rope": {"rope_parameters": LLAMA3_ROPE},
    "linear-rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    "multi-query": {"num_key_value_heads": 1},
    "wide-heads": {"head_dim": 32},
    "padding-free": {"vocabulary_size": 512},
}


def load(folder) -> Decoder:
    with torch.device("meta"):
        model = Decoder(DecoderConfig.from_folder(folder))
    materialize(model, folder, "cpu", seed=0)
    return model


def tensors_of(folder) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def logits(model: Decoder, input_ids: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    return model.logits(model(input_ids, positions, torch.zeros_like(input_ids)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers_and_the_round_trip_is_exact(variant, tmp_path):
    source = write_tiny_llama(tmp_path / "source", **VARIANTS[variant])
    model = load(source)
    reference = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    input_ids = torch.randint(500, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = reference(input_ids).logits
        torch.testing.assert_close(logits(model, input_ids), want, rtol=1e-4, atol=1e-4)

    save_model(model, tmp_path / "saved", source, torch.float32)
    before, after = tensors_of(source), tensors_of(tmp_path / "saved")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(input_ids).logits, want)
    assert again.generation_config.eos_token_id == reference.generation_config.eos_token_id
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer.chat_template == transformers.AutoTokenizer.from_pretrained(source).chat_template


def test_padded_rows_are_zero(tmp_path):
    model = load(write_tiny_llama(tmp_path))
    assert model.embedding.weight.shape[0] == 512
    assert model.embedding.weight[500:].abs().max() == 0 and model.head.weight[500:].abs().max() == 0


@pytest.mark.parametrize("weight_type", [torch.bfloat16, torch.float16])
def test_several_files_in_half_precision_load_everywhere(weight_type, tmp_path):
    source = write_tiny_llama(tmp_path / "source")
    save_model(load(source), tmp_path / "saved", source, weight_type, max_shard_bytes=60_000)
    files = sorted((tmp_path / "saved").glob("*.safetensors"))
    assert len(files) > 2
    assert json.loads((tmp_path / "saved/model.safetensors.index.json").read_text())["metadata"]["total_size"] == sum(
        t.nbytes for t in tensors_of(tmp_path / "saved").values()
    )
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert reference.dtype == weight_type
    ours = load(tmp_path / "saved")
    before = tensors_of(source)
    for name, parameter in reference.named_parameters():
        assert torch.equal(parameter, before[name].to(weight_type)), name
    assert torch.equal(ours.final_norm.weight, before["model.norm.weight"].to(weight_type).float())


def test_written_files_are_what_the_library_reads(tmp_path):
    """The streamed format: names, types, shapes, bytes and metadata as safetensors itself has them."""
    source = write_tiny_llama(tmp_path / "source")
    save_model(load(source), tmp_path / "saved", source, torch.float32)
    save_file(load_file(source / "model.safetensors"), tmp_path / "own.safetensors", metadata={"format": "pt"})
    ours, own = load_file(tmp_path / "saved/model.safetensors"), load_file(tmp_path / "own.safetensors")
    assert ours.keys() == own.keys() and all(torch.equal(ours[n], own[n]) for n in own)
    assert (tmp_path / "saved/model.safetensors").stat().st_size == (tmp_path / "own.safetensors").stat().st_size


def test_extra_lm_head_of_a_tied_model_is_ignored(tmp_path):
    source = write_tiny_llama(tmp_path / "source", tie_word_embeddings=True)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert not hasattr(load(source), "head")


def test_errors_name_missing_unknown_and_wrong_tensors(tmp_path):
    source = write_tiny_llama(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.norm.bias"] = torch.zeros(64)
    tensors["lm_head.weight"] = torch.zeros(501, 64)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as raised:
        load(source)
    assert "missing: model.norm.weight" in str(raised.value)
    assert "unknown: model.norm.bias" in str(raised.value)
    assert "lm_head.weight is (501, 64), not (500, 64)" in str(raised.value)


def test_torn_and_missing_files_are_user_errors(tmp_path):
    source = write_tiny_llama(tmp_path / "source")
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"not a readable safetensors file"):
        load(source)
    (source / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model.safetensors nor"):
        load(source)
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(UserError, match=r"gone.safetensors: no such file"):
        load(source)


def test_locate_model_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r"no such folder"):
        locate_model(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"neither config.json nor adapter_config.json|holds neither"):
        locate_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "../gone"}')
    with pytest.raises(UserError, match=r"no model is there"):
        locate_model(tmp_path)
    shutil.rmtree(tmp_path)
