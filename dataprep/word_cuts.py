"""Whether a tokenizer cuts a text into words before it does anything else, and always before " word"."""

import json
import re
from typing import Any

from transformers import PreTrainedTokenizerBase

# A space that begins a word: behind something that is no white space, before an ASCII letter.
BORDER = re.compile(r" (?=[A-Za-z])(?<=\S )")


def can_be_cut(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's parts work on words alone, and cut wherever `BORDER` does."""
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    model = state["model"]
    if model.get("type") != "BPE" or model.get("dropout") or not _is_local(state["pre_tokenizer"]):
        return False
    # Composed characters never reach across a space that a letter follows.
    if state["normalizer"] is not None and state["normalizer"]["type"] != "NFC":
        return False
    for token in state["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"] or re.search(r"\s", token["content"]):
            return False
    return all(map(_Probe(backend).cuts_before_word, _PROBES))


def _is_local(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether it is made of parts that look at the text they are given and not at where that stands."""
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": parts}:
            return all(map(_is_local, parts))
        case {"type": "ByteLevel", "add_prefix_space": False} | {"type": "Digits"}:
            return True
        case {"type": "Split", "pattern": {"Regex": _}, "behavior": "Isolated"}:
            return True
    return False


# What may stand before a word: every kind of character, alone and after a few others.
_PROBES = tuple(
    before + character
    for before in ("a", "\n", "it's", " ,")
    for character in [*map(chr, range(33, 127)), "é", "ß", "字", "ا", "\u0301", "½", "€", "“", "😀", "\u200d", "\x00"]
)


class _Probe:
    def __init__(self, backend: Any):
        self._backend = backend

    def cuts_before_word(self, before: str) -> bool:
        """Whether the tokenizer cuts behind these characters where a space and a letter follow."""
        for after in (" word", " X"):
            text = before + after
            pieces = self._backend.pre_tokenizer.pre_tokenize_str(text)
            if not any(start == len(before) for _, (start, _) in pieces):
                return False
        return True
