r"""Token ids of rendered conversations, several times as fast as the tokenizer gives them, and the same.

A byte-level tokenizer cuts a text into words before it does anything else, and words come back again and again:

    "the cat, the  dog<|im_end|>" --> "the" " cat," " the  dog" "<|im_end|>" --> ids that are known, or asked for once

A text is cut only where every tokenizer accepted here cuts it as well: before a space and an ASCII letter that follow
something that is no white space, and around special tokens. Whether a tokenizer is accepted follows from its parts,
and is tried out; one text of each batch is also encoded as a whole and compared. Any other tokenizer is asked for
whole texts.
"""

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

# The first character, then all up to a space that begins a word: one before a letter and not behind white space.
_CHUNK = re.compile(r".(?:[^ ]+|(?<=\s) | (?![A-Za-z]))*", re.DOTALL)
# About 60 MB of words; real text has a few hundred thousand. Longer ones hardly come back.
MAX_KNOWN = 200_000
MAX_LENGTH = 64


class Encoder:
    """Encodes texts in which the chat template has written the special tokens; none is added.

    Attributes:
      in_parts: Whether texts are cut.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        added = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        self._added = re.compile(f"({'|'.join(map(re.escape, added))})") if added else None
        self._known: dict[str, Sequence[int]] = {}
        self.in_parts = _can_be_cut(tokenizer)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        if not texts:
            return []
        if not self.in_parts:
            return self._ask(texts)
        chunks = [self._cut(text) for text in texts]
        known = self._known
        unknown = set(chain.from_iterable(chunks)).difference(known)
        if len(known) + len(unknown) > MAX_KNOWN:
            known.clear()
            unknown = set(chain.from_iterable(chunks))
        # Sorted, so that a run is like any other; long ones are known for this batch only.
        new = sorted(unknown)
        known.update(zip(new, self._ask(new), strict=True) if new else ())
        ids = [list(chain.from_iterable(map(known.__getitem__, found))) for found in chunks]
        for chunk in new:
            if len(chunk) > MAX_LENGTH:
                del known[chunk]
        shortest = min(range(len(texts)), key=lambda number: len(texts[number]))
        for number in {0, shortest}:
            if ids[number] != self._ask([texts[number]])[0]:
                raise RuntimeError(f"the tokenizer does not encode {texts[number][:80]!r} word by word")
        return ids

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each, special tokens included."""
        # Not the tokenizer's batch_decode, which looks at the type of every single id: that takes longer than all else.
        return self._tokenizer.backend_tokenizer.decode_batch(list(ids), skip_special_tokens=False)

    def _cut(self, text: str) -> list[str]:
        if self._added is None:
            return _CHUNK.findall(text)
        chunks: list[str] = []
        for number, part in enumerate(self._added.split(text)):
            if number % 2:
                chunks.append(part)
            elif part:
                chunks += _CHUNK.findall(part)
        return chunks

    def _ask(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return list(encoded)


def _can_be_cut(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's parts work on words alone, and cut wherever `_CHUNK` does."""
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
