"""Every variant of every family computes what `transformers` does: logits, gradients, and the export read again."""

import pytest

from finecut.trainer.models import verify
from finecut.trainer.models.families.registry import FAMILIES
from finecut.trainer.testing import LLAMA3_ROPE, write_tiny_model

YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
VARIANTS = [
    ("llama", {}),
    ("llama", {"rope_parameters": LLAMA3_ROPE}),
    ("llama", {"rope_parameters": YARN_ROPE, "num_key_value_heads": 1}),
    ("llama", {"rope_parameters": {**YARN_ROPE, "beta_fast": 4, "truncate": False}, "head_dim": 32}),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("mistral", {}),
    ("mistral", {"sliding_window": None, "head_dim": 32}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": False, "tie_word_embeddings": True, "rope_parameters": YARN_ROPE}),
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True, "tie_word_embeddings": True, "rope_parameters": YARN_ROPE}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"norm_topk_prob": False, "mlp_only_layers": [0], "num_experts_per_tok": 3}),
    ("qwen3_moe", {"decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 30}),
    ("gemma3_text", {}),
    ("gemma3_text", {"rope_parameters": GEMMA_ROPE, "final_logit_softcapping": None}),
    ("gemma3_text", {"tie_word_embeddings": False, "attention_bias": True}),
]


@pytest.mark.parametrize(("family", "fields"), VARIANTS, ids=str)
def test_random_models_are_equal(family, fields, tmp_path):
    checks = verify.verify(write_tiny_model(tmp_path, family, **fields), seed=1)
    assert len(checks) == 3
    for check in checks:
        assert check.is_equal and check.difference < 1e-4 * check.largest, check


def test_every_family_is_verified():
    assert {family for family, _ in VARIANTS} == set(FAMILIES)
