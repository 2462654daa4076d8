"""What a model family has to say about itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family of Hugging Face models maps to our decoder."""

    # `model_type` in config.json.
    model_type: str
    # The fields of DecoderConfig, `family` aside, from config.json. Raises UserError for what the decoder cannot do.
    decoder_fields: Callable[[Mapping[str, Any]], dict[str, Any]]
    # Name of a tensor in Hugging Face's files, from the name of our parameter.
    tensor_name: Callable[[str], str]
    # Ends of tensor names that old files hold and nobody needs, such as precomputed frequencies.
    ignored_suffixes: tuple[str, ...] = ()
