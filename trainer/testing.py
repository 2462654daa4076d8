"""Tiny models for tests, written by `transformers` itself, with a tokenizer that works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from finecut.dataprep.testing import TURN_END, write_tiny_tokenizer

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


# What each family's config needs beside the sizes that all share; every special feature of a family is switched on.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 20},
    "qwen2": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {
        "head_dim": 32,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
    },
    "gemma3_text": {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 20,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "final_logit_softcapping": 5.0,
    },
}


def write_tiny_llama(folder: Path, **arguments: Any) -> Path:
    """`write_tiny_model` of a Llama."""
    return write_tiny_model(folder, "llama", **arguments)


def write_tiny_model(
    folder: Path,
    family: str,
    *,
    seed: int = 0,
    vocabulary_size: int = 500,
    chat_template: str | None = None,
    **config_fields: Any,
) -> Path:
    """Writes a random model (2 layers, 64 wide, 4 heads on 2 key heads, FP32) with a tokenizer; returns the folder.

    The vocabulary is no multiple of 64, so that padding matters. `config_fields` go to the family's config class in
    `transformers`, such as `tie_word_embeddings=True` or `rope_parameters=LLAMA3_ROPE`.
    """
    template = {} if chat_template is None else {"chat_template": chat_template}
    write_tiny_tokenizer(folder, vocabulary_size, **template)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    fields = {
        "vocab_size": vocabulary_size,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        # Wide enough for logits that tell tokens, and mistakes, apart.
        "initializer_range": 0.2,
    }
    fields |= FAMILIES[family] | config_fields
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **fields))
    # A norm's weight starts at 1, a bias at 0; only other values show whether they are read at all.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5, generator=generator)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURN_END)]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    return folder
