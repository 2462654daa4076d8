"""Near-duplicates: records whose words are nearly the same, told by MinHash (Broder, 1997).

    words -> 5-grams -> a signature of 128 numbers; of two records, the share of equal numbers estimates the Jaccard
    similarity of their 5-grams (standard deviation at 0.8: 0.035)

Candidates share a band, that is, some numbers in a row, with the record at hand; each is confirmed by the whole
signature. Memory is about 1 KB for each record that is kept: its signature, and 8 to 16 bytes for each band.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from finecut.dataprep.conversations import Conversation
from finecut.dataprep.event_sequences import EventSequence
from finecut.dataprep.messages import Message
from finecut.dataprep.parsing import Sample
from finecut.dataprep.preferences import Preference
from finecut.dataprep.prompts import Prompt

WORDS_OF_A_GRAM = 5
SIGNATURE_LENGTH = 128
# Bands are as long as they can be so that of two records at the threshold this share is found.
_FOUND_AT_THRESHOLD = 0.99
# A band that more kept records share is boilerplate, and tells nothing: no more of them are noted.
_MAX_SHARING = 64
# 5-grams hashed together: the library's matrix of them takes 1 KB for each.
_CHUNK_GRAMS = 8192
_EMPTY = np.uint32(0xFFFFFFFF)
# Languages that write no blanks: each sign is a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def words_of(sample: Sample) -> list[str]:
    """What a record says, in lower case and without punctuation; where nothing else is said, punctuation."""
    if isinstance(sample, EventSequence):
        return list(map(str, sample.ids.tolist()))
    texts = list(_texts(sample))
    return [word for text in texts for word in _WORD.findall(text.lower())] or texts


def signature(words: list[str]) -> np.ndarray:
    """uint32 [SIGNATURE_LENGTH]; equal words give an equal one, in every process and version."""
    minhash = _minhash().copy()
    grams = max(1, len(words) - WORDS_OF_A_GRAM + 1)
    for start in range(0, grams, _CHUNK_GRAMS):
        numbers = range(start, min(start + _CHUNK_GRAMS, grams))
        minhash.update_batch([" ".join(words[n : n + WORDS_OF_A_GRAM]).encode() for n in numbers])
    return minhash.hashvalues.astype(np.uint32)


class NearDuplicates:
    """The signatures of the records that are kept. Which of several is kept depends on their order alone: the first."""

    def __init__(self, similarity: float):
        """`similarity`: of two records, from which on the later one is left out; 0 to 1."""
        self._similarity = similarity
        self._rows = _rows_of_a_band(similarity)
        self._num_bands = SIGNATURE_LENGTH // self._rows
        self._signatures: np.ndarray = np.empty((1024, SIGNATURE_LENGTH), np.uint32)
        self._size = 0
        self._make_slots(1 << 16)

    def __len__(self) -> int:
        return self._size

    def add(self, signature: np.ndarray) -> bool:
        """Whether none that was kept before is as similar; then this one is kept too."""
        candidates = self._candidates(self._homes(signature))
        if len(candidates):
            shares = (self._signatures[candidates] == signature).mean(axis=1)
            if shares.max() >= self._similarity:
                return False
        self._keep(signature)
        return True

    def _homes(self, signature: np.ndarray) -> np.ndarray:
        """Where the search for each band begins: its 64-bit hash, cut to the table."""
        used: np.ndarray = signature[: self._num_bands * self._rows].astype(np.uint64)
        bands = used.reshape(self._num_bands, self._rows)
        hashes = (bands * _odd_factors(self._rows)).sum(axis=1, dtype=np.uint64)
        hashes += np.arange(self._num_bands, dtype=np.uint64)
        # The finalizer of MurmurHash3: neighbouring sums end up far apart.
        hashes ^= hashes >> np.uint64(33)
        hashes *= np.uint64(0xFF51AFD7ED558CCD)
        hashes ^= hashes >> np.uint64(33)
        return (hashes & np.uint64(self._num_slots - 1)).astype(np.int64)

    def _candidates(self, homes: np.ndarray) -> np.ndarray:
        """Kept records from the home of each band up to the next free slot; some are there by chance."""
        found = self._slots[homes[:, None] + np.arange(_MAX_SHARING)]
        in_cluster = np.logical_and.accumulate(found != _EMPTY, axis=1)
        return np.unique(found[in_cluster])

    def _keep(self, signature: np.ndarray) -> None:
        if self._size == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.empty_like(self._signatures)])
        self._signatures[self._size] = signature
        self._size += 1
        if 2 * self._size * self._num_bands > self._num_slots:
            self._make_slots(2 * self._num_slots)
            for number in range(self._size - 1):
                self._note(number)
        self._note(self._size - 1)

    def _make_slots(self, number: int) -> None:
        """A power of two, and room for the last cluster."""
        self._num_slots = number
        self._slots = np.full(number + _MAX_SHARING, _EMPTY)

    def _note(self, number: int) -> None:
        """Puts the record into the next free slot behind the home of each band."""
        homes = self._homes(self._signatures[number])
        is_free = self._slots[homes[:, None] + np.arange(_MAX_SHARING)] == _EMPTY
        has_room = is_free.any(axis=1)
        self._slots[(homes + is_free.argmax(axis=1))[has_room]] = number


def _texts(sample: Conversation | Prompt | Preference | Any) -> Iterator[str]:
    if isinstance(sample, Preference):
        messages: tuple[Message, ...] = (*sample.prompt, sample.chosen, sample.rejected)
    elif isinstance(sample, Conversation | Prompt):
        messages = sample.messages
    else:
        yield sample.text
        return
    for message in messages:
        yield from message.texts()


@cache
def _minhash() -> Any:
    # Slow to import (it brings scipy), and needed by few jobs.
    from datasketch import MinHash

    return MinHash(num_perm=SIGNATURE_LENGTH, seed=1)


@cache
def _odd_factors(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**63, rows, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def _rows_of_a_band(similarity: float) -> int:
    """The most numbers in a band with which records of this similarity share one often enough."""
    return max(
        rows
        for rows in range(1, SIGNATURE_LENGTH + 1)
        if 1 - (1 - similarity**rows) ** (SIGNATURE_LENGTH // rows) >= _FOUND_AT_THRESHOLD
    )
