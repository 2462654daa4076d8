"""The tokenizer: always `transformers.AutoTokenizer`, so that training and serving cannot disagree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from finecut.dataprep import storage
from finecut.proto.config import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# In a data artifact: the tokenizer that made it.
FOLDER = "tokenizer"


def load(
    reference: str | Path,
    chat_template_file: str | Path | None = None,
    needs_template: bool = True,
    added_tokens: Sequence[str] = (),
) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model folder or hub id; the template file, where given, replaces its chat template.

    `added_tokens` follow the tokenizer's own in this order.

    A hub id is looked up as `transformers` does it: HF_HOME's cache first, and nothing else where HF_HUB_OFFLINE is
    set. Raises UserError where there is no tokenizer, no fast implementation of it, no chat template where one is
    needed, or where a token to be added is there already.
    """
    from transformers import AutoTokenizer  # takes seconds, which ranks that load no tokenizer do without

    reference = str(reference)
    try:
        tokenizer = AutoTokenizer.from_pretrained(reference)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"tokenization.tokenizer: {reference!r} holds no tokenizer that AutoTokenizer can load "
            f"({_first_line(error)}); give a Hugging Face model folder with tokenizer.json"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenization.tokenizer: {reference!r} has no fast tokenizer (tokenizer.json); save one with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
    _add_tokens(tokenizer, added_tokens, str(reference))
    if chat_template_file:
        tokenizer.chat_template = _read_template(str(chat_template_file))
    if needs_template and not isinstance(tokenizer.chat_template, str):
        raise UserError(
            f"tokenization.tokenizer: {reference!r} has no single chat template; "
            "set tokenization.chat_template_file to a Jinja file"
        )
    return tokenizer


def _add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], reference: str) -> None:
    known = tokenizer.get_vocab()
    if present := [token for token in tokens if token in known]:
        raise UserError(
            f"added_tokens: {', '.join(present)}: in the vocabulary of {reference!r} already; name only what it lacks"
        )
    if len(set(tokens)) < len(tokens):
        raise UserError("added_tokens: a token is named twice; name each once")
    # Not special ones, which decoding for people leaves out; not normalized, so that they are found as written.
    added = tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    assert added == len(tokens), (added, tokens)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hexadecimal) of everything that decides which ids a conversation becomes, and of nothing else."""
    return _digest(_vocabulary(tokenizer) | {"chat_template": tokenizer.chat_template})


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hexadecimal) of everything that decides which ids a text becomes; the chat template is left out."""
    return _digest(_vocabulary(tokenizer))


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Padding and truncation are the state of the last call, not part of the tokenizer.
    backend.pop("padding", None)
    backend.pop("truncation", None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return {"tokenizer": backend, "special_tokens": special}


def _digest(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id that fills blocks. It may be the end of sequence's: what is trained comes from the mask, never from ids."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def _read_template(place: str) -> str:
    try:
        return storage.read_text(place)
    except Exception as error:  # the file may be remote, and each kind of store has exceptions of its own
        raise UserError(f"tokenization.chat_template_file: cannot read {place}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
