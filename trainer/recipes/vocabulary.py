"""Whether a model beside the trained one reads its tokens: references, teachers and critics get ids, never text."""

from __future__ import annotations

from pathlib import Path

from finecut.dataprep import tokenization
from finecut.proto.config import UserError
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.source import ModelSource
from finecut.trainer.models.tokenizer_files import has_tokenizer

_SHOWN = 3  # tokens in one message


def check(role: str, source: ModelSource, config: DecoderConfig, trained: DecoderConfig, tokenizer: Path) -> None:
    """Raises UserError where the model in `role` has another vocabulary than the trained one.

    Embeddings must be as many, and no id may mean another token; a role's folder without a tokenizer says nothing of
    the latter. Templates and special roles of tokens may differ, as between a base model and its chat model.

    Args:
      tokenizer: Folder of the trained model's.
    """
    if config.vocabulary_size != trained.vocabulary_size:
        raise UserError(
            f"{role}: {source.base} has a vocabulary of {config.vocabulary_size:,} tokens and the trained model one of"
            f" {trained.vocabulary_size:,}; use one with the trained model's tokenizer"
        )
    if not has_tokenizer(source.tokenizer) or source.tokenizer == tokenizer:
        return
    theirs, ours = (_tokens(folder) for folder in (source.tokenizer, tokenizer))
    others = [number for number in sorted(theirs.keys() & ours.keys()) if theirs[number] != ours[number]]
    if others:
        shown = ", ".join(f"{number} is {theirs[number]!r} and not {ours[number]!r}" for number in others[:_SHOWN])
        raise UserError(
            f"{role}: {source.tokenizer} has other tokens than {tokenizer} under {len(others):,} ids ({shown}); use a"
            " model with the trained model's tokenizer"
        )


def _tokens(folder: Path) -> dict[int, str]:
    """By their ids."""
    vocabulary = tokenization.load(folder, needs_template=False).get_vocab()
    return {number: token for token, number in vocabulary.items()}
