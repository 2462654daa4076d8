"""What a model family has to say about itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from finecut.trainer.models.families.fields import Fields
from finecut.trainer.models.families.stored import Stored, Whole


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family of Hugging Face models maps to our decoder."""

    # `model_type` in config.json.
    model_type: str
    # The fields of DecoderConfig, `family` aside, from config.json. What the decoder cannot do is noted in the Fields.
    decoder_fields: Callable[[Fields], dict[str, Any]]
    # How Hugging Face's files hold our parameter of a name and a shape; the first way is the one that is written.
    stored: Callable[[str, tuple[int, ...]], tuple[Stored, ...]]
    # Ends of tensor names that old files hold and nobody needs, such as precomputed frequencies.
    ignored_suffixes: tuple[str, ...] = (".rotary_emb.inv_freq",)
    # Whether activations are known to exceed FP16's largest number.
    overflows_fp16: bool = False

    def tensor_name(self, parameter: str) -> str:
        """Name in the files of a parameter that is a tensor of its own there."""
        way = self.stored(parameter, ())[0]
        assert isinstance(way, Whole), parameter
        return way.name
