"""Splitting: by content, whole groups of duplicates, and independent of order where there is a bound."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.dataprep.documents import Document
from finecut.dataprep.split import EVALUATION, TRAIN, Splitter, content_digest, content_hash


def document(*ids: int, **flags: bool) -> Document:
    return Document(np.array(ids, np.int32), np.ones(len(ids), bool), **flags)


def split(hashes: list[int], fraction: float, max_documents: int | None = None) -> dict[str, list[int]]:
    """Hashes by split; documents carry their hash as their only token."""
    splitter: Splitter[Document] = Splitter(fraction, max_documents)
    routed: dict[str, list[int]] = {TRAIN: [], EVALUATION: []}
    for value in hashes:
        document = Document(np.array([value], np.uint64), np.array([False]))
        for name, done in splitter.add(value, document):
            routed[name].append(int(done.input_ids_T[0]))
    for name, done in splitter.flush():
        routed[name].append(int(done.input_ids_T[0]))
    return routed


def hash_of(*ids: int, seed: int = 0, **flags: bool) -> int:
    return content_hash(content_digest(document(*ids, **flags)), seed)


def test_the_hash_sees_tokens_and_seed_and_nothing_else() -> None:
    assert hash_of(1, 2) == hash_of(1, 2, truncated=True)
    assert len({hash_of(1, 2), hash_of(2, 1), hash_of(1, 2, seed=1)}) == 3


def test_about_the_asked_share_is_held_out() -> None:
    held_out = len(split([hash_of(number) for number in range(4000)], 0.05)[EVALUATION])
    assert 150 < held_out < 250  # 200 expected, standard deviation 14


@settings(deadline=None, derandomize=True)
@given(
    hashes=st.lists(st.integers(0, 40).map(lambda n: n * 2**58), max_size=60),
    max_documents=st.none() | st.integers(1, 30),
    seed=st.integers(0, 5),
)
def test_duplicates_stay_together_whatever_the_order(hashes: list[int], max_documents: int | None, seed: int) -> None:
    routed = split(hashes, 0.4, max_documents)
    assert not set(routed[TRAIN]) & set(routed[EVALUATION])
    assert sorted(routed[TRAIN] + routed[EVALUATION]) == sorted(hashes)
    assert len(routed[EVALUATION]) <= (max_documents or len(hashes))
    shuffled = random.Random(seed).sample(hashes, len(hashes))
    assert sorted(split(shuffled, 0.4, max_documents)[EVALUATION]) == sorted(routed[EVALUATION])


def test_nothing_is_held_out_by_default() -> None:
    assert split([0, 1, 2], 0.0) == {TRAIN: [0, 1, 2], EVALUATION: []}
