"""Where a model's weights and tokenizer come from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from finecut.proto.config import UserError
from finecut.trainer.models.tokenizer_files import has_tokenizer


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A Hugging Face folder, and the adapter that was trained on it, if any."""

    # Holds config.json, the weights and the tokenizer.
    base: Path
    # Holds adapter_config.json and adapter_model.safetensors.
    adapter: Path | None = None

    @property
    def tokenizer(self) -> Path:
        """Holds the tokenizer: the adapter's folder where it was trained with one of its own, else the base."""
        return self.adapter if self.adapter and has_tokenizer(self.adapter) else self.base


def locate_model(reference_path: Path) -> ModelSource:
    """What lies at a path: a model folder, or an adapter with the path of its base model inside.

    A relative base model is taken from the adapter's folder. Raises UserError when there is no model.
    """
    folder = Path(reference_path)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; a model is a folder in Hugging Face's layout")
    adapter_config = folder / "adapter_config.json"
    if not adapter_config.exists():
        if not (folder / "config.json").exists():
            raise UserError(f"{folder}: holds neither config.json nor adapter_config.json, so it is not a model")
        return ModelSource(folder)
    try:
        base_name = json.loads(adapter_config.read_text(encoding="utf-8"))["base_model_name_or_path"]
        base = folder / base_name
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{adapter_config}: base_model_name_or_path must be the folder of the base model") from None
    if not (base / "config.json").exists():
        raise UserError(f"{adapter_config}: base_model_name_or_path: {base_name}: no model is there")
    return ModelSource(base, folder)
