"""Holds out documents for evaluation by a hash of their content, so that a duplicate is always on the same side."""

import hashlib
import heapq
from collections.abc import Iterator
from itertools import count
from typing import Generic, TypeVar

from finecut.dataprep.documents import Document, digest_of_ids

TRAIN, EVALUATION = "train", "evaluation"
_HASH_RANGE = 2**64
T = TypeVar("T")


def content_digest(document: Document) -> bytes:
    """16 bytes, equal for documents that must not be parted: those of equal tokens, as the linter compares them.

    Pairs are told by their prompt, so that no answer to a prompt of evaluation is trained on. All documents made of one
    record take the digest of the first.
    """
    length = len(document) if document.pair is None else document.prompt_length
    return digest_of_ids(document.input_ids_T[:length])


def content_hash(digest: bytes, seed: int) -> int:
    """Uniform in [0, 2^64): where content of this digest stands among all, in an order that the seed draws."""
    return int.from_bytes(hashlib.sha256(seed.to_bytes(8, "big") + digest).digest()[:8], "big")


class Splitter(Generic[T]):
    """Sends each document to a split, with whatever the caller hands over for it.

    Held out is the share `fraction` with the smallest hashes. With a bound, it is the largest set of smallest hashes
    that respects the bound and keeps duplicates together; only that set is held in memory, and the result does not
    depend on the order of the documents.
    """

    def __init__(self, fraction: float, max_documents: int | None = None):
        self._threshold = int(fraction * _HASH_RANGE)
        self._max_documents = max_documents
        self._held: list[tuple[int, int, T]] = []  # a heap, largest hash first; the number breaks ties
        self._numbers = count()

    def add(self, content: int, document: T) -> Iterator[tuple[str, T]]:
        """Documents whose split is certain now, with its name."""
        if content >= self._threshold:
            yield TRAIN, document
        elif self._max_documents is None:
            yield EVALUATION, document
        else:
            heapq.heappush(self._held, (-content, next(self._numbers), document))
            while len(self._held) > self._max_documents:
                yield from self._release_largest()

    def flush(self) -> Iterator[tuple[str, T]]:
        """The documents that are still held: they stay in evaluation, in the order they came."""
        yield from ((EVALUATION, document) for _, _, document in sorted(self._held, key=lambda item: item[1]))
        self._held = []

    def _release_largest(self) -> Iterator[tuple[str, T]]:
        """All documents of the largest hash go to training, and so will their duplicates that are yet to come."""
        self._threshold = -self._held[0][0]
        while self._held and -self._held[0][0] == self._threshold:
            yield TRAIN, heapq.heappop(self._held)[2]
