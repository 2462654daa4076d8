"""Model folders of a shape, for what reads folders: config.json alone, or with random weights and a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

from finecut.dataprep.testing import write_tiny_tokenizer
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.planning.known_shapes import LLAMA3_8B, QWEN3_06B, QWEN3_17B

SHAPES = {"0.6B": QWEN3_06B, "1.7B": QWEN3_17B, "8B": LLAMA3_8B}


def config_of(shape: DecoderConfig) -> transformers.PretrainedConfig:
    """As `transformers` writes it."""
    rope = {"rope_type": "default", "rope_theta": shape.rope.theta}
    return transformers.AutoConfig.for_model(
        shape.family,
        vocab_size=shape.vocabulary_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.max_positions,
        rms_norm_eps=shape.norm_epsilon,
        tie_word_embeddings=shape.tied_embeddings,
        rope_parameters=rope,
    )


def write_config(shape: DecoderConfig, folder: Path) -> Path:
    """A folder for engines that get their weights from the trainer."""
    config_of(shape).save_pretrained(folder)
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["architectures"] = [type(_empty(shape)).__name__]
    path.write_text(json.dumps(fields, indent=1), encoding="utf-8")
    return folder


def write_model(shape: DecoderConfig, folder: Path) -> Path:
    """A folder with random weights in BF16, and a small tokenizer."""
    write_tiny_tokenizer(folder, 500)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config_of(shape), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    return folder


def _empty(shape: DecoderConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config_of(shape))
