"""A tokenizer's files in a Hugging Face folder, which travel with the model."""

from __future__ import annotations

import shutil
from pathlib import Path

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer of its own."""
    return (folder / "tokenizer_config.json").exists()


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Makes `folder` hold `source`'s tokenizer and chat template, and nothing of another one."""
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
