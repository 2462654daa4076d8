"""The text of token ids, for a byte-level tokenizer from a table of bytes: the tokenizer's own way takes longer than
all else that data preparation does.
"""

import json
from collections.abc import Sequence

import numpy as np
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase


class Decoder:
    """Decodes ids, special tokens included. Two texts of each call are compared with what the tokenizer says."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._backend = tokenizer.backend_tokenizer
        self._bytes = _bytes_of_tokens(tokenizer)

    def decode(self, ids: Sequence[np.ndarray]) -> list[str]:
        """The text of each; bytes that are no UTF-8 become U+FFFD."""
        if self._bytes is None or not ids:
            return self._ask(ids)
        get = self._bytes.__getitem__
        texts = [b"".join(map(get, ids_T.tolist())).decode(errors="replace") for ids_T in ids]
        shortest = min(range(len(ids)), key=lambda number: len(ids[number]))
        for number in {0, shortest}:
            if texts[number] != self._ask([ids[number]])[0]:
                raise RuntimeError(f"the tokenizer does not decode to {texts[number][:80]!r} token by token")
        return texts

    def _ask(self, ids: Sequence[np.ndarray]) -> list[str]:
        # Not the tokenizer's batch_decode, which looks at the type of every single id.
        return list(self._backend.decode_batch([ids_T.tolist() for ids_T in ids], skip_special_tokens=False))


def _bytes_of_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes] | None:
    """What each token stands for; None where that depends on its neighbours."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    if decoder is None or decoder["type"] != "ByteLevel":
        return None
    byte_of = _byte_of_characters()
    return {
        number: bytes(byte_of[sign] for sign in token) if byte_of.keys() >= set(token) else token.encode()
        for token, number in tokenizer.get_vocab().items()
    }


def _byte_of_characters() -> dict[str, int]:
    """GPT-2's alphabet: printable characters of Latin-1 stand for their byte, the others follow from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    assert alphabet.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return alphabet
