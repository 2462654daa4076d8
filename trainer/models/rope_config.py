"""Which rotary positions a model has. No torch: plans read it, too."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretching of long wavelengths; the names are those of its config.json."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Positions divided by a factor (Chen et al., 2023)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al., 2023): slow frequencies are divided by the factor, fast ones stay, the scores grow.

    `beta_fast` and `beta_slow` are turns over the original positions, between which frequencies are interpolated.
    """

    factor: float
    original_max_position_embeddings: int
    # Cosine and sine are multiplied by it, so that scores are by its square.
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    # Whether the two bounds are rounded outwards to whole frequencies.
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class Rope:
    """Which angles a position has."""

    theta: float = 10_000.0
    scaling: Llama3Scaling | LinearScaling | YarnScaling | None = None
