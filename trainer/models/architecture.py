"""What sets the layers of a decoder apart, beyond its sizes."""

from __future__ import annotations

import dataclasses
import enum

from finecut.trainer.models.rope_config import Rope


class Activation(enum.Enum):
    """Of the gate of a feed-forward layer."""

    SILU = "silu"
    GELU_TANH = "gelu_pytorch_tanh"


@dataclasses.dataclass(frozen=True)
class LocalAttention:
    """Layers whose tokens see `window` keys at most, their own among them, under rotary positions of their own."""

    window: int
    rope: Rope
    layers: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Experts:
    """Layers whose feed-forward part is a mixture: each token goes through `chosen` of `count` experts."""

    count: int
    chosen: int
    intermediate_size: int
    # Whether the weights of the chosen experts are made to sum to 1.
    normalized: bool
    layers: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class OutputHead:
    """What takes the place of the language-model head: `num_outputs` numbers a token, each a linear map of its state.

    One number is a reward or a value; more are the scores of as many items, of which a target names one.
    """

    num_outputs: int
    # Standard deviation of the weights where the source has none; 0 makes every output 0 at first.
    initial_std: float = 0.0

    @property
    def is_scalar(self) -> bool:
        """Whether there is one number a token."""
        return self.num_outputs == 1


@dataclasses.dataclass(frozen=True)
class NewRows:
    """Rows of the vocabulary, ids `begin` to `end`, that mean nothing yet in files that hold `stored` rows.

    Those from `stored` on are not there at all; those before it were spare.
    """

    stored: int
    begin: int
    end: int
