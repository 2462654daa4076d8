"""Which angle each position has in rotary embeddings (Su et al., 2021), always worked out in FP32.

Shapes: B rows, L tokens, F frequencies, half the head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from finecut.trainer.models.rope_config import LinearScaling, Llama3Scaling, Rope, YarnScaling
from finecut.trainer.ops.rotary import Rotation


def frequencies(rope: Rope, head_size: int, device: torch.device) -> Tensor:
    """Radians a position, [F] in FP32."""
    exponent_F = torch.arange(0, head_size, 2, dtype=torch.int64, device=device).float() / head_size
    frequency_F = 1.0 / (rope.theta**exponent_F)
    match rope.scaling:
        case LinearScaling(factor):
            return frequency_F / factor
        case Llama3Scaling() as scaling:
            return _scaled_as_llama3(frequency_F, scaling)
        case YarnScaling() as scaling:
            return _scaled_as_yarn(frequency_F, scaling, rope.theta)
        case _:
            return frequency_F


def _scaled_as_llama3(frequency_F: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Short wavelengths stay, long ones are divided by the factor, those between are interpolated."""
    turns_F = scaling.original_max_position_embeddings * frequency_F / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept_F = ((turns_F - scaling.low_freq_factor) / span).clamp(0, 1)
    return frequency_F * kept_F + frequency_F / scaling.factor * (1 - kept_F)


def _scaled_as_yarn(frequency_F: Tensor, scaling: YarnScaling, theta: float) -> Tensor:
    """As Llama 3's, but interpolated evenly over the frequencies' index and not over their turns."""
    num_frequencies = frequency_F.shape[0]

    def index_of(turns: float) -> float:
        wavelength = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return num_frequencies * math.log(wavelength) / math.log(theta)

    low, high = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * num_frequencies - 1)
    index_F = torch.arange(num_frequencies, dtype=torch.float32, device=frequency_F.device)
    # The small number is transformers' own, for bounds that coincide.
    divided_F = ((index_F - low) / (high - low or 0.001)).clamp(0, 1)
    return frequency_F * (1 - divided_F) + frequency_F / scaling.factor * divided_F


def rotation(rope: Rope, head_size: int, position_ids_BL: Tensor) -> Rotation:
    """The rotation of each token of a batch."""
    frequency_F = frequencies(rope, head_size, position_ids_BL.device)
    factor = rope.scaling.attention_factor if isinstance(rope.scaling, YarnScaling) else 1.0
    with torch.autocast(position_ids_BL.device.type, enabled=False):
        angle_BL1F = position_ids_BL[:, :, None, None].float() * frequency_F
        return Rotation(angle_BL1F.cos() * factor, angle_BL1F.sin() * factor)
