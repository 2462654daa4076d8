"""Floating-point operations that training needs, and the share of a GPU's peak that they make (MFU).

Counted is what the mathematics asks for: attention only over the keys that a token sees in its own document, the head
only where a token is trained, no weight gradients for what LoRA freezes. Padding and recomputed activations count for
nothing, so that neither makes a run look faster.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.lora import LoraConfig

# Dense BF16 and FP16 operations a second of one GPU, from the makers' data sheets.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


def peak_of(device_name: str) -> float | None:
    """Peak of a GPU by the name that the driver gives it; None for one that is not in the table."""
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)


def step_flops(
    config: DecoderConfig, document_lengths: Sequence[int] | np.ndarray, trained_tokens: int, lora: LoraConfig | None
) -> float:
    """Operations of the forward and backward pass over these documents, whatever they are packed or padded to.

    Args:
      document_lengths: tokens of each document; padding is none.
      trained_tokens: tokens that are in the loss.
      lora: the adapters, where only they are trained.
    """
    lengths = np.asarray(document_lengths, dtype=np.float64)
    tokens = float(lengths.sum())
    projections = _projections(config)
    total = 0.0
    for layer in range(config.num_layers):
        for name, (inputs, outputs) in projections.items():
            # Nothing is trained below the first layer's queries, keys and values when the embedding is frozen.
            passes_on = lora is None or layer > 0 or name not in ("q_proj", "k_proj", "v_proj")
            total += tokens * _linear(inputs, outputs, lora is None, passes_on)
            if lora is not None and name in lora.targets:
                total += tokens * (
                    _linear(inputs, lora.rank, True, passes_on) + _linear(lora.rank, outputs, True, True)
                )
    pairs = float((lengths * (lengths + 1) / 2).sum())
    # Scores and values forward; their four gradients backward.
    total += config.num_layers * pairs * config.num_heads * config.head_size * (4 + 8)
    return total + trained_tokens * _linear(config.hidden_size, config.vocabulary_size, lora is None, True)


def _linear(inputs: int, outputs: int, is_trained: bool, passes_on: bool) -> float:
    """Operations a token: the product, the weight's gradient and the input's."""
    return 2.0 * inputs * outputs * (1 + is_trained + passes_on)


def _projections(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a layer's linear layers."""
    hidden, wide = config.hidden_size, config.intermediate_size
    query_size, key_size = config.num_heads * config.head_size, config.num_key_heads * config.head_size
    return {
        "q_proj": (hidden, query_size),
        "k_proj": (hidden, key_size),
        "v_proj": (hidden, key_size),
        "o_proj": (query_size, hidden),
        "gate_proj": (hidden, wide),
        "up_proj": (hidden, wide),
        "down_proj": (wide, hidden),
    }
