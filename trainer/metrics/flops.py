"""Floating-point operations that training needs, and the share of a GPU's peak that they make (MFU).

Counted is what the mathematics asks for: attention only over the keys that a token sees in its own document, the head
only where a token is trained, no weight gradients for what LoRA freezes. Padding and recomputed activations count for
nothing, so that neither makes a run look faster.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.lora_config import LoraConfig

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
      lora: the adapters with their targets (`Decoder.lora`), where only they are trained.
    """
    lengths = np.asarray(document_lengths, dtype=np.float64)
    tokens = float(lengths.sum())
    total = trained_tokens * _linear(config.hidden_size, config.vocabulary_size, lora is None, True)
    for layer in range(config.num_layers):
        for name, (inputs, outputs, share) in _products(config, layer).items():
            # Nothing is trained below the first layer's queries, keys and values when the embedding is frozen.
            passes_on = lora is None or layer > 0 or name not in ("q_proj", "k_proj", "v_proj")
            total += tokens * share * _linear(inputs, outputs, lora is None, passes_on)
            if lora is not None and name in lora.targets:
                total += tokens * _linear(inputs, lora.rank, True, passes_on)
                total += tokens * _linear(lora.rank, outputs, True, True)
        window = config.local.window if config.local and config.is_local(layer) else None
        # Scores and values forward; their four gradients backward.
        total += _pairs(lengths, window) * config.num_heads * config.head_size * (4 + 8)
    return total


def _pairs(lengths: np.ndarray, window: int | None) -> float:
    """Pairs of a token and a key that it sees, a window's own token among its keys."""
    nearby = lengths if window is None else np.minimum(lengths, window)
    return float((nearby * (nearby + 1) / 2 + (lengths - nearby) * nearby).sum())


def _linear(inputs: int, outputs: int, is_trained: bool, passes_on: bool) -> float:
    """Operations a token: the product, the weight's gradient and the input's."""
    return 2.0 * inputs * outputs * (1 + is_trained + passes_on)


def _products(config: DecoderConfig, layer: int) -> dict[str, tuple[int, int, int]]:
    """Inputs and outputs of a layer's linear layers, and how often a token goes through them."""
    hidden = config.hidden_size
    query_size, key_size = config.num_heads * config.head_size, config.num_key_heads * config.head_size
    products = {
        "q_proj": (hidden, query_size, 1),
        "k_proj": (hidden, key_size, 1),
        "v_proj": (hidden, key_size, 1),
        "o_proj": (query_size, hidden, 1),
    }
    wide, share = config.intermediate_size, 1
    if config.experts and config.has_experts(layer):
        wide, share = config.experts.intermediate_size, config.experts.chosen
        products["router"] = (hidden, config.experts.count, 1)
    return products | {
        "gate_proj": (hidden, wide, share),
        "up_proj": (hidden, wide, share),
        "down_proj": (wide, hidden, share),
    }
