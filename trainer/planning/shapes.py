"""How many parameters a decoder has, by part, from its config alone. Tests hold it to the modules themselves.

Shapes: D hidden size, Q and G widths of queries and of keys, I intermediate size, V padded vocabulary.
"""

from __future__ import annotations

import dataclasses

from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.lora_config import LoraConfig


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Numbers of parameters. `layers` and `outer` together are all; `trained` counts among them.

    Attributes:
      outer: The embedding, the final norm and the head: FSDP2's root unit.
      stored: Of the exported model: without padding of the vocabulary, adapters merged.
    """

    layers: tuple[int, ...]
    outer: int
    trained: int
    stored: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.layers) + self.outer

    @property
    def frozen(self) -> int:
        """Those that are not trained."""
        return self.total - self.trained


def count(config: DecoderConfig, lora: LoraConfig | None = None, num_outputs: int | None = None) -> Parameters:
    """Parameters of the decoder with its adapters.

    Args:
      num_outputs: rows of an output head that takes the place of the language-model head; None: there is none.
    """
    base = [_layer(config, layer) for layer in range(config.num_layers)]
    adapters = [0] * config.num_layers
    if lora is not None:
        lora = lora.for_model(has_experts=config.experts is not None)
        adapters = [_adapters(config, lora, layer) for layer in range(config.num_layers)]
    head = _head_rows(config, num_outputs) * config.hidden_size
    embedding = config.padded_vocabulary_size * config.hidden_size
    outer = embedding + config.hidden_size + head
    total = sum(base) + outer
    padding = (config.padded_vocabulary_size - config.vocabulary_size) * config.hidden_size
    own_head = num_outputs is None and not config.tied_embeddings
    return Parameters(
        layers=tuple(a + b for a, b in zip(base, adapters, strict=True)),
        outer=outer,
        trained=total if lora is None else sum(adapters) + (head if num_outputs else 0),
        stored=total - padding * (2 if own_head else 1),
    )


def _head_rows(config: DecoderConfig, num_outputs: int | None) -> int:
    if num_outputs is None:
        return 0 if config.tied_embeddings else config.padded_vocabulary_size
    return num_outputs if num_outputs == 1 else -(-num_outputs // 64) * 64


def widths(config: DecoderConfig) -> tuple[int, int]:
    """Q and G."""
    return config.num_heads * config.head_size, config.num_key_heads * config.head_size


def _linear_sizes(config: DecoderConfig) -> dict[str, tuple[int, int, bool]]:
    """Inputs, outputs and whether there is a bias, of the linear layers of a layer without experts."""
    D, I = config.hidden_size, config.intermediate_size  # noqa: E741
    Q, G = widths(config)
    return {
        "q_proj": (D, Q, config.query_bias),
        "k_proj": (D, G, config.query_bias),
        "v_proj": (D, G, config.query_bias),
        "o_proj": (Q, D, config.output_bias),
        "gate_proj": (D, I, config.mlp_bias),
        "up_proj": (D, I, config.mlp_bias),
        "down_proj": (I, D, config.mlp_bias),
    }


def _layer(config: DecoderConfig, layer: int) -> int:
    sizes = _linear_sizes(config)
    norms = config.hidden_size * (4 if config.norms_after else 2) + (
        2 * config.head_size if config.query_key_norm else 0
    )
    experts = 0
    if config.experts and config.has_experts(layer):
        sizes = {name: size for name, size in sizes.items() if name[0] in "qkvo"}
        experts = config.experts.count * config.hidden_size * (1 + 3 * config.experts.intermediate_size)
    return norms + experts + sum(inputs * outputs + bias * outputs for inputs, outputs, bias in sizes.values())


def _adapters(config: DecoderConfig, lora: LoraConfig, layer: int) -> int:
    sizes = _linear_sizes(config)
    return sum(lora.rank * (sizes[name][0] + sizes[name][1]) for name in lora.targets)
