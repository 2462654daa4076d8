"""config.json of every age is understood, and what the decoder cannot do is refused by name."""

import json
import math

import pytest

from finecut.proto.config import UserError
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.rope_config import LinearScaling, Llama3Scaling, Rope, YarnScaling

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
TYPES = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
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
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, Rope(1e5)),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}},
            Rope(1e5, YarnScaling(4.0, 2048, attention_factor=0.1 * math.log(4) + 1)),
        ),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, Rope(1e5, Llama3Scaling(**LLAMA3))),
        (
            {"rope_theta": "absent", "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
            Rope(5e5, Llama3Scaling(**LLAMA3)),
        ),
    ],
)
def test_rope_of_both_ages_of_transformers(fields, rope, tmp_path):
    assert read(tmp_path, **fields).rope == rope


def test_fields_without_meaning_for_the_decoder_are_taken(tmp_path):
    """As they stand in SmolLM2's config.json, and what is switched off."""
    plain = read(tmp_path)
    fields = {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}}
    assert read(tmp_path, **fields, new_feature=False, other_feature=None, _name_or_path="x") == plain


@pytest.mark.parametrize(
    ("fields", "local"),
    [
        ({}, (4096, range(4))),
        ({"sliding_window": None}, None),
        ({"sliding_window": 7}, (7, range(4))),
        ({"model_type": "qwen2", "max_window_layers": 3}, None),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3}, (9, [3])),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 4}, None),
        ({"model_type": "qwen3", "use_sliding_window": True, "layer_types": TYPES}, (4096, [0, 1, 3])),
        ({"model_type": "qwen3_moe", "use_sliding_window": True, "max_window_layers": 3}, (4096, range(4))),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 2}, (4096, [0, 2])),
        ({"model_type": "gemma3_text", "layer_types": TYPES, "sliding_window": 8}, (8, [0, 1, 3])),
    ],
)
def test_windows_are_where_transformers_has_them(fields, local, tmp_path):
    found = read(tmp_path, **({"model_type": "mistral", "num_hidden_layers": 4} | fields)).local
    assert (found and (found.window, found.layers)) == (local and (local[0], tuple(local[1])))


def test_gemma_has_two_rope_bases_in_both_ages(tmp_path):
    old = {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    new = {
        "rope_theta": "absent",
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
    }
    for fields in (old, new):
        config = read(tmp_path, model_type="gemma3_text", **fields)
        assert config.rope == Rope(1e6, LinearScaling(8.0)) and config.local.rope == Rope(2e4)


def test_experts_are_in_the_layers_that_the_config_says(tmp_path):
    fields = {"model_type": "qwen3_moe", "num_hidden_layers": 6, "num_experts": 8, "num_experts_per_tok": 2}
    config = read(tmp_path, **fields, decoder_sparse_step=2, mlp_only_layers=[3])
    assert config.experts.layers == (1, 5) and (config.experts.count, config.experts.chosen) == (8, 2)


def test_absent_key_heads_mean_one_for_each_query_head(tmp_path):
    assert read(tmp_path, num_key_value_heads="absent").num_key_heads == 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "gpt2"},
            "model_type: 'gpt2' is not supported; supported families: gemma3_text, llama, mistral",
        ),
        (
            {"model_type": "phi9", "sliding_window": 4, "key_lora_rank": 8, "query_scale": 2.0, "use_cache": True},
            r"fields that none of them knows: key_lora_rank, query_scale$",
        ),
        ({"model_type": "absent"}, "model_type: None is not supported"),
        ({"attention_dropout": 0.1, "pretraining_tp": 2}, "attention_dropout: 0.1 .*; pretraining_tp: 2 is not"),
        ({"mlp_bias": "yes"}, "mlp_bias: 'yes' must be true or false"),
        ({"residual_scale": 2.0, "vocab_size": 0}, "vocab_size: 0 must be.*; residual_scale: 2.0 is not known"),
        ({"sliding_window": 4096}, "sliding_window: 4096 is not supported; it must be None"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: {'bits': 4} is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported; it must be 'silu'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type: 'longrope' is not supported"),
        ({"rope_scaling": [1]}, r"rope_parameters: \[1\] is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1}}}, "must be one kind of rope"),
        ({"rope_scaling": {"rope_type": "linear", "factor": None}}, "holds a value that should be a number"),
        ({"model_type": "gemma3_text", "rope_parameters": {"rope_type": "linear"}}, "must hold full_attention and"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope of type 'yarn' lacks the field 'factor'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: 0.5 is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks the field 'low_freq_factor'"),
        ({"vocab_size": "absent"}, "vocab_size: None must be a whole number"),
        ({"hidden_size": "576"}, "hidden_size: '576' must be a whole number"),
        (
            {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0},
            "attn_logit_softcapping: 50.0 is not supported",
        ),
        ({"model_type": "qwen3_moe", "output_router_logits": True}, "output_router_logits: True is not supported"),
        ({"model_type": "qwen3_moe", "num_experts": 4}, "num_experts_per_tok: 8 must be at most 4"),
        ({"model_type": "qwen3", "layer_types": ["chunked_attention"]}, "layer_types: .* must name one of"),
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
