"""Rotary positions as config.json describes them, in both of its ages.

Since transformers 5 `rope_parameters` holds everything; before, `rope_theta` stood beside `rope_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from finecut.trainer.models.families.fields import Fields
from finecut.trainer.models.rope_config import LinearScaling, Llama3Scaling, Rope, YarnScaling

_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


def read_rope(fields: Fields, max_positions: int, default_theta: float = 10_000.0) -> Rope:
    """The one kind of rotary positions of a model."""
    parameters = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    fields.ignore("rope_scaling")
    theta = fields.real("rope_theta", default_theta)
    return parse_rope(fields, parameters, theta, max_positions)


def parse_rope(fields: Fields, parameters: Mapping[str, Any], theta: float, max_positions: int) -> Rope:
    """Rotary positions from a dictionary of parameters; `theta` is what holds where they do not say."""
    if not isinstance(parameters, Mapping) or any(isinstance(value, Mapping) for value in parameters.values()):
        fields.problem(f"rope_parameters: {parameters!r} is not supported; it must be one kind of rope")
        return Rope(theta)
    try:
        return _parse(fields, parameters, theta, max_positions)
    except (TypeError, ValueError):
        fields.problem(f"rope_parameters: {parameters!r} holds a value that should be a number")
        return Rope(theta)


def _parse(fields: Fields, parameters: Mapping[str, Any], theta: float, max_positions: int) -> Rope:
    theta = float(parameters.get("rope_theta") or theta)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if parameters.get("partial_rotary_factor") not in (None, 1):
        fields.problem(f"partial_rotary_factor: {parameters['partial_rotary_factor']!r} is not supported; it must be 1")
    try:
        match kind:
            # The dynamic kind changes the frequencies only beyond `max_positions`, and blocks are never longer.
            case "default" | "dynamic":
                return Rope(theta)
            case "linear":
                return Rope(theta, LinearScaling(float(parameters["factor"])))
            case "llama3":
                return Rope(theta, _llama3(parameters, max_positions))
            case "yarn":
                return Rope(theta, _yarn(parameters, max_positions))
    except KeyError as missing:
        fields.problem(f"rope of type {kind!r} lacks the field {missing}")
        return Rope(theta)
    fields.problem(f"rope_type: {kind!r} is not supported; use a model with {', '.join(_KINDS)}")
    return Rope(theta)


def _llama3(parameters: Mapping[str, Any], max_positions: int) -> Llama3Scaling:
    return Llama3Scaling(
        factor=float(parameters["factor"]),
        low_freq_factor=float(parameters["low_freq_factor"]),
        high_freq_factor=float(parameters["high_freq_factor"]),
        original_max_position_embeddings=int(parameters.get("original_max_position_embeddings") or max_positions),
    )


def _yarn(parameters: Mapping[str, Any], max_positions: int) -> YarnScaling:
    original = int(parameters.get("original_max_position_embeddings") or max_positions)
    factor = parameters["factor"]
    factor = float(max_positions / original if factor is None else factor)
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=_yarn_attention_factor(parameters, factor),
        beta_fast=float(parameters.get("beta_fast") or 32),
        beta_slow=float(parameters.get("beta_slow") or 1),
        truncate=bool(parameters.get("truncate", True)),
    )


def _yarn_attention_factor(parameters: Mapping[str, Any], factor: float) -> float:
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])

    def growth(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    weight, all_weight = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return growth(weight) / growth(all_weight) if weight and all_weight else growth(1)
