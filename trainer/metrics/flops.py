"""Floating-point operations that training needs, and the share of a GPU's peak that they make (MFU).

Counted is what the mathematics asks for: attention only over the keys that a token sees in its own document, the head
only where a token is trained, no weight gradients for what LoRA freezes. Padding and recomputed activations count for
nothing, so that neither makes a run look faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.lora_config import LoraConfig


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of the forward and backward pass, by part; of `layers` and `attention` also the forward pass alone."""

    layers: float
    attention: float
    head: float
    layers_forward: float

    @property
    def attention_forward(self) -> float:
        """Scores and values; the backward pass has their four gradients."""
        return self.attention / 3

    @property
    def total(self) -> float:
        """All parts, forward and backward."""
        return self.layers + self.attention + self.head


def step_flops(
    config: DecoderConfig,
    document_lengths: Sequence[int],
    trained_tokens: int,
    lora: LoraConfig | None,
    num_outputs: int | None = None,
) -> float:
    """Operations of the forward and backward pass over these documents, whatever they are packed or padded to."""
    return by_part(config, document_lengths, trained_tokens, lora, num_outputs).total


def by_part(
    config: DecoderConfig,
    document_lengths: Sequence[int],
    trained_tokens: int,
    lora: LoraConfig | None,
    num_outputs: int | None = None,
) -> Flops:
    """The same, by part.

    Args:
      document_lengths: tokens of each document; padding is none.
      trained_tokens: tokens that are in the loss.
      lora: the adapters with their targets (`Decoder.lora`), where only they are trained.
      num_outputs: rows of an output head, which is trained with adapters, too; None: the language-model head.
    """
    tokens = float(sum(document_lengths))
    rows, trains_head = (config.vocabulary_size, lora is None) if num_outputs is None else (num_outputs, True)
    layers = forward = attention = 0.0
    seen = {
        window: _pairs(document_lengths, window) for window in {None, config.local.window if config.local else None}
    }
    for layer in range(config.num_layers):
        for name, (inputs, outputs, share) in products(config, layer).items():
            # Nothing is trained below the first layer's queries, keys and values when the embedding is frozen.
            passes_on = lora is None or layer > 0 or name not in ("q_proj", "k_proj", "v_proj")
            layers += tokens * share * _linear(inputs, outputs, lora is None, passes_on)
            forward += tokens * share * _linear(inputs, outputs, False, False)
            if lora is not None and name in lora.targets:
                layers += tokens * _linear(inputs, lora.rank, True, passes_on)
                layers += tokens * _linear(lora.rank, outputs, True, True)
                forward += tokens * 2 * lora.rank * (inputs + outputs)
        window = config.local.window if config.local and config.is_local(layer) else None
        # Scores and values forward; their four gradients backward.
        attention += seen[window] * config.num_heads * config.head_size * (4 + 8)
    return Flops(layers, attention, trained_tokens * _linear(config.hidden_size, rows, trains_head, True), forward)


def _pairs(lengths: Sequence[int], window: int | None) -> float:
    """Pairs of a token and a key that it sees, a window's own token among its keys."""
    total = 0
    for length in lengths:
        nearby = length if window is None else min(length, window)
        total += nearby * (nearby + 1) // 2 + (length - nearby) * nearby
    return float(total)


def _linear(inputs: int, outputs: int, is_trained: bool, passes_on: bool) -> float:
    """Operations a token: the product, the weight's gradient and the input's."""
    return 2.0 * inputs * outputs * (1 + is_trained + passes_on)


def products(config: DecoderConfig, layer: int) -> dict[str, tuple[int, int, int]]:
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
