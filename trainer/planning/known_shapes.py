"""Shapes of models that were measured, for benchmarks and for tests of plans."""

from __future__ import annotations

from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.rope_config import Rope


def _qwen3(hidden: int, intermediate: int) -> DecoderConfig:
    """A Qwen3 shape of 28 layers."""
    return DecoderConfig(
        family="qwen3",
        vocabulary_size=151_936,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=28,
        num_heads=16,
        num_key_heads=8,
        head_size=128,
        max_positions=40_960,
        norm_epsilon=1e-6,
        tied_embeddings=True,
        rope=Rope(1_000_000.0),
        query_key_norm=True,
    )


QWEN3_06B = _qwen3(1_024, 3_072)
QWEN3_17B = _qwen3(2_048, 6_144)
LLAMA3_8B = DecoderConfig(
    family="llama",
    vocabulary_size=128_256,
    hidden_size=4_096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_key_heads=8,
    head_size=128,
    max_positions=8_192,
    norm_epsilon=1e-5,
    tied_embeddings=False,
    rope=Rope(500_000.0),
)
