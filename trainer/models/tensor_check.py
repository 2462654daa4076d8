"""Whether a folder's tensors are those of a decoder, and if not, in what they differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from finecut.proto.config import UserError
from finecut.trainer.models.decoder import SCORE_PARAMETER, VOCABULARY_PARAMETERS, Decoder
from finecut.trainer.models.families.stored import Stored
from finecut.trainer.models.lora import LORA_SUFFIXES
from finecut.trainer.models.safetensors_read import TensorFolder
from finecut.trainer.models.sharding import named_parameters

_SHOWN = 10  # names in one error message, the layers of a name counting as one
_NUMBERS = re.compile(r"(?<=\.)\d+(?=\.)")


def find_tensors(model: Decoder, tensors: TensorFolder) -> Mapping[str, Stored]:
    """How the files hold each parameter, adapters aside; an output head that they lack is left out.

    Raises UserError, naming the tensors, when the files lack some, hold others, or have other shapes.
    """
    found = {
        name: _choose(model, name, parameter, tensors.names)
        for name, parameter in named_parameters(model)
        if not name.endswith(LORA_SUFFIXES)
    }
    if model.output_head and not tensors.names & found[SCORE_PARAMETER].shapes().keys():
        del found[SCORE_PARAMETER]
    expected = {name: shape for stored in found.values() for name, shape in stored.shapes().items()}
    ignored = model.config.tensor_family.ignored_suffixes
    # A tied head may be written out as a copy of the embedding; config.json says that it is tied, and that decides.
    if model.config.tied_embeddings or model.output_head:
        ignored += ("lm_head.weight",)
    missing = set(expected) - tensors.names
    extra = {name for name in tensors.names - set(expected) if not name.endswith(ignored)}
    wrong = [
        f"{name} is {tensors.shape(name)}, not {shape}"
        for name, shape in expected.items()
        if name not in missing and tensors.shape(name) != shape
    ]
    problems = [
        f"{title}: {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
        for title, names in (
            ("missing", summarize(missing)),
            ("unknown", summarize(extra)),
            ("of another shape", wrong),
        )
        if names
    ]
    if problems:
        raise UserError(f"{tensors.folder}: the tensors do not fit config.json; " + "; ".join(problems))
    return found


def summarize(names: Iterable[str]) -> list[str]:
    """Names in order; those that differ only in numbers (layers, experts) are one, with how many they are."""
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        alike.setdefault(_NUMBERS.sub("*", name), []).append(name)
    return [group[0] if len(group) == 1 else f"{key} ({len(group)} tensors)" for key, group in alike.items()]


def _choose(model: Decoder, name: str, parameter: Tensor, available: set[str]) -> Stored:
    """The way in which the files hold a parameter; the usual one where they hold it in none."""
    shape = model.exported_shape(name, parameter)
    if model.config.new_rows and name in VOCABULARY_PARAMETERS:
        shape = (model.config.new_rows.stored, *shape[1:])
    ways = model.config.tensor_family.stored(name, shape)
    return next((way for way in ways if way.shapes().keys() & available), ways[0])
