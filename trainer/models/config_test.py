"""config.json of every age is understood, and what the decoder cannot do is refused by name."""

import json

import pytest

from finecut.proto.config import UserError
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.rope import LinearScaling, Llama3Scaling, Rope

BASE = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8_192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_theta": 100_000,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8_192}


def read(folder, **fields) -> DecoderConfig:
    merged = {name: value for name, value in (BASE | fields).items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(merged))
    return DecoderConfig.from_folder(folder)


def test_reads_smollm2(tmp_path):
    config = read(tmp_path, attention_bias=False, mlp_bias=False, hidden_act="silu", rope_scaling=None)
    assert config == DecoderConfig(
        family="llama",
        vocabulary_size=49_152,
        hidden_size=576,
        intermediate_size=1_536,
        num_layers=30,
        num_heads=9,
        num_key_heads=3,
        head_size=64,
        max_positions=8_192,
        norm_epsilon=1e-5,
        tied_embeddings=True,
        rope=Rope(100_000.0),
    )
    assert config.padded_vocabulary_size == 49_152
    assert read(tmp_path, vocab_size=49_153).padded_vocabulary_size == 49_216


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"rope_theta": "absent"}, Rope(10_000.0)),
        ({"rope_theta": "absent", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rope(5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, Rope(1e5, LinearScaling(2.0))),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, Rope(1e5, Llama3Scaling(**LLAMA3))),
        (
            {"rope_theta": "absent", "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
            Rope(5e5, Llama3Scaling(**LLAMA3)),
        ),
    ],
)
def test_rope_of_both_ages_of_transformers(fields, rope, tmp_path):
    assert read(tmp_path, **fields).rope == rope


def test_absent_key_heads_mean_one_for_each_query_head(tmp_path):
    assert read(tmp_path, num_key_value_heads="absent").num_key_heads == 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "model_type: 'gpt2' is not supported; supported families: llama"),
        ({"model_type": "absent"}, "model_type: None is not supported"),
        ({"attention_bias": True, "mlp_bias": True}, "attention_bias: True .*; mlp_bias: True"),
        ({"sliding_window": 4096}, "sliding_window: 4096 is not supported; it must be None"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: {'bits': 4} is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported; it must be 'silu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type: 'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks the field 'low_freq_factor'"),
        ({"vocab_size": "absent"}, "vocab_size: None must be a whole number"),
        ({"hidden_size": "576"}, "hidden_size: '576' must be a whole number"),
        ({"num_key_value_heads": 2}, "num_key_value_heads: 2 does not divide the 9 heads"),
    ],
)
def test_refuses_by_field(fields, message, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        read(tmp_path, **fields)
    assert str(tmp_path / "config.json") in str(raised.value)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"config.json: no such file"):
        DecoderConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: cannot be read as JSON"):
        DecoderConfig.from_folder(tmp_path)
