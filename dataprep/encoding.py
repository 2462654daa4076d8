r"""Token ids of texts, many times as fast as the tokenizer gives them, and the same.

A byte-level tokenizer cuts a text into words before it does anything else, and words come back again and again:

    "the cat, the  dog<|im_end|>" --> "the" " cat," " the  dog" "<|im_end|>" --> ids that are known, or asked for once

A text is cut only where every tokenizer accepted here cuts it as well: before a space and an ASCII letter that follow
something that is no white space, and around added tokens. Whether a tokenizer is accepted follows from its parts, and
is tried out (word_cuts.py); two texts of each call are also encoded as a whole and compared. Any other tokenizer is
asked for whole texts.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from finecut.dataprep.word_cuts import BORDER, can_be_cut
from finecut.dataprep.word_table import WordTable

# Before what stands at the start of a text or behind an added token; every other word has lost the space before it.
_FIRST = "\0"


@dataclass(frozen=True)
class Encoded:
    """The ids of a text, int32 [T]; for each border asked for, the tokens before it, None where one reaches across."""

    ids_T: np.ndarray
    borders: tuple[int | None, ...] = ()


class Encoder:
    """Encodes texts that hold their special tokens; where `adds_tokens`, with what the tokenizer puts around a text.

    Attributes:
      in_parts: Whether texts are cut.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, adds_tokens: bool = False):
        self._tokenizer = tokenizer
        self._adds_tokens = adds_tokens
        added = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        self._added = re.compile(f"({'|'.join(map(re.escape, added))})") if added else None
        self._words = WordTable(self._ask_words)
        self._around = self._look_around() if adds_tokens else ([], [])
        self.in_parts = self._around is not None and can_be_cut(tokenizer)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32."""
        return [encoded.ids_T for encoded in self.encode_with_borders(texts, [()] * len(texts))]

    def encode_with_borders(self, texts: Sequence[str], borders: Sequence[Sequence[int]]) -> list[Encoded]:
        """The ids of each text. `borders` are positions in it: do its ids begin with those of the text up to there?

        Where tokens are put around a text, there are no borders.
        """
        assert not (self._adds_tokens and any(borders))
        if not texts:
            return []
        if not self.in_parts:
            return self._encode_whole(texts, borders)
        batch = _Batch(self._words)
        for text in texts:
            batch.add(list(self._pieces(text)))
        heads = [
            [self._head(text, batch.starts[number], border) for border in found]
            for number, (text, found) in enumerate(zip(texts, borders, strict=True))
        ]
        for found in heads:
            for _, text in found:
                batch.add(list(self._pieces(text)))
        encoded = self._join(batch, heads)
        self._compare(texts, encoded)
        return encoded

    def _pieces(self, text: str) -> Iterator[str]:
        """Added tokens and what stands between them; none is empty."""
        return filter(None, self._added.split(text) if self._added else (text,))

    def _head(self, text: str, starts: Sequence[int], border: int) -> tuple[int, str]:
        """The last piece that begins before the border, and what stands of it before the border.

        All pieces before it are as they are in the whole text, unless the border cuts an added token.
        """
        if not starts:
            return 0, ""
        piece = max(bisect_left(starts, border) - 1, 0)
        head = text[starts[piece] : border]
        end = starts[piece + 1] if piece + 1 < len(starts) else len(text)
        if border < end and self._added and self._added.fullmatch(text[starts[piece] : end]):
            return 0, text[:border]
        return piece, head

    def _join(self, batch: "_Batch", heads: Sequence[Sequence[tuple[int, str]]]) -> list[Encoded]:
        """The ids of the texts, and those of the heads compared with them."""
        results = batch.results()
        after_texts = iter(results[len(heads) :])
        before, after = self._around or ([], [])
        encoded = []
        for (ids_T, piece_starts), found in zip(results, heads, strict=False):
            borders: list[int | None] = []
            for piece, _ in found:
                head_T, _ = next(after_texts)
                start = int(piece_starts[piece]) if len(piece_starts) else 0
                end = start + len(head_T)
                borders.append(end if np.array_equal(ids_T[start:end], head_T) else None)
            if before or after:
                ids_T = np.concatenate([np.array(before, np.int32), ids_T, np.array(after, np.int32)])
            encoded.append(Encoded(ids_T, tuple(borders)))
        return encoded

    def _compare(self, texts: Sequence[str], encoded: Sequence[Encoded]) -> None:
        """Asks for the first and the shortest text as a whole."""
        shortest = min(range(len(texts)), key=lambda number: len(texts[number]))
        for number in {0, shortest}:
            if encoded[number].ids_T.tolist() != self._ask([texts[number]])[0]:
                raise RuntimeError(f"the tokenizer does not encode {texts[number][:80]!r} word by word")

    def _encode_whole(self, texts: Sequence[str], borders: Sequence[Sequence[int]]) -> list[Encoded]:
        heads = [text[:border] for text, found in zip(texts, borders, strict=True) for border in found]
        different = list(dict.fromkeys([*texts, *heads]))
        ids_of = dict(zip(different, self._ask(different), strict=True))
        encoded = []
        for text, found in zip(texts, borders, strict=True):
            ids = ids_of[text]
            before = [ids_of[text[:border]] for border in found]
            agreed = tuple(len(head) if ids[: len(head)] == head else None for head in before)
            encoded.append(Encoded(np.array(ids, np.int32), agreed))
        return encoded

    def _look_around(self) -> tuple[list[int], list[int]] | None:
        """What the tokenizer puts before and behind a text; None where that cannot be told."""
        ids, inner = self._ask(["word"])[0], self._ask(["word"], adds_tokens=False)[0]
        for start in range(len(ids) - len(inner) + 1):
            if ids[start : start + len(inner)] == inner:
                return ids[:start], ids[start + len(inner) :]
        return None

    def _ask_words(self, words: Sequence[str]) -> list[list[int]]:
        texts = [word[1:] if word[0] == _FIRST else " " + word for word in words]
        # Without the tokenizer's own conversion of results, which takes longer than the encoding of a word.
        found = self._tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def _ask(self, texts: Sequence[str], adds_tokens: bool | None = None) -> list[list[int]]:
        adds_tokens = self._adds_tokens if adds_tokens is None else adds_tokens
        encoded = self._tokenizer(list(texts), add_special_tokens=adds_tokens, return_attention_mask=False)
        return list(encoded["input_ids"])


class _Batch:
    """Texts as words, looked up together.

    Attributes:
      starts: For each text, where its pieces begin in it.
    """

    def __init__(self, words: WordTable):
        self._table = words
        self._words: list[str] = []
        self._first_words: list[list[int]] = []  # for each text, the number of the first word of each piece
        self.starts: list[list[int]] = []

    def add(self, pieces: Sequence[str]) -> None:
        starts, first_words, position = [], [], 0
        for piece in pieces:
            starts.append(position)
            first_words.append(len(self._words))
            position += len(piece)
            words = BORDER.split(piece)
            words[0] = _FIRST + words[0]
            self._words += words
        self.starts.append(starts)
        self._first_words.append(first_words)

    def results(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each text its ids, and where its pieces begin in them."""
        ids, borders = self._table.ids_of(self._words)
        results = []
        end = len(borders) - 1
        for first_words in reversed(self._first_words):
            begins = borders[first_words]
            start = begins[0] if len(begins) else borders[end]
            results.append((ids[start : borders[end]], begins - start))
            end = first_words[0] if first_words else end
        return results[::-1]
