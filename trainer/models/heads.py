"""Output heads in Hugging Face's files: a model "for sequence classification" whose labels are the head's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.config import read_config
from finecut.trainer.models.decoder import Decoder

_SUFFIX = "ForSequenceClassification"


def read_output_head(folder: Path) -> OutputHead | None:
    """The head of a model folder, or None where it is a language model. Raises UserError when there is no model."""
    fields = read_config(Path(folder) / "config.json")
    if not any(str(name).endswith(_SUFFIX) for name in fields.get("architectures") or []):
        return None
    labels = fields.get("id2label")
    return OutputHead(len(labels) if labels else int(fields.get("num_labels") or 2))


def head_fields(model: Decoder, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the model's head changes in config.json."""
    if model.output_head is None:
        return {}
    labels = {str(i): f"LABEL_{i}" for i in range(model.output_head.num_outputs)}
    architectures = [str(name) for name in fields.get("architectures") or []]
    return {
        "architectures": [_with_suffix(name) for name in architectures],
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
    }


def _with_suffix(architecture: str) -> str:
    return architecture.removesuffix("ForCausalLM").removesuffix(_SUFFIX) + _SUFFIX
