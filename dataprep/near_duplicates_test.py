"""Near-duplicates: what is similar is found, what is not is kept, and nothing depends on chance."""

import random

import numpy as np
import pytest

from finecut.dataprep import near_duplicates
from finecut.dataprep.conversations import Conversation
from finecut.dataprep.event_sequences import EventSequence
from finecut.dataprep.messages import Message
from finecut.dataprep.near_duplicates import NearDuplicates, signature, words_of
from finecut.dataprep.texts import Text


def words(number: int, length: int = 300) -> list[str]:
    generator = random.Random(number)
    return [f"w{generator.randrange(10_000)}" for _ in range(length)]


def changed(original: list[str], count: int, seed: int = 0) -> list[str]:
    copy = list(original)
    for place in random.Random(seed).sample(range(len(copy)), count):
        copy[place] = "changed"
    return copy


def similarity(one: list[str], other: list[str]) -> float:
    """Jaccard's, over all 5-grams."""
    first, second = ({tuple(w[n : n + 5]) for n in range(len(w) - 4)} for w in (one, other))
    return len(first & second) / len(first | second)


def test_a_signature_estimates_the_similarity_of_5_grams() -> None:
    for count in (1, 5, 20):
        one, other = words(count), changed(words(count), count)
        estimate = (signature(one) == signature(other)).mean()
        assert estimate == pytest.approx(similarity(one, other), abs=0.12)  # three standard deviations


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_the_first_of_similar_records_is_kept_and_others_are(threshold: float) -> None:
    kept = NearDuplicates(threshold)
    assert all(kept.add(signature(words(number))) for number in range(200))
    assert not any(kept.add(signature(words(number))) for number in range(0, 200, 7))
    near = [signature(changed(words(number), 2)) for number in range(100)]  # similarity about 0.93
    assert [kept.add(found) for found in near].count(True) == (100 if threshold == 1 else 0)
    far = [signature(changed(words(number), 100)) for number in range(100)]  # below 0.3
    assert all(kept.add(found) for found in far)
    assert len(kept) == (400 if threshold == 1 else 300)


def test_what_is_kept_is_what_comparing_all_with_all_keeps() -> None:
    signatures = [signature(changed(words(n % 60), n % 40, seed=n)) for n in range(600)]
    kept: list[np.ndarray] = []
    expected = []
    for found in signatures:
        expected.append(not any((found == other).mean() >= 0.8 for other in kept))
        if expected[-1]:
            kept.append(found)
    index = NearDuplicates(0.8)
    assert [index.add(found) for found in signatures] == expected
    assert 60 < sum(expected) < 590


def test_memory_is_a_kilobyte_a_record() -> None:
    generator = np.random.default_rng(0)
    index = NearDuplicates(0.8)
    number = 5000
    for _ in range(number):
        assert index.add(generator.integers(0, 2**32, 128, dtype=np.uint32))
    used = index._signatures.nbytes + index._slots.nbytes
    assert used < 1.5 * 1024 * number


def test_boilerplate_that_thousands_share_costs_no_more() -> None:
    index = NearDuplicates(0.8)
    found = np.zeros(128, np.uint32)
    generator = np.random.default_rng(0)
    for _ in range(500):
        found[60:] = generator.integers(1, 2**32, 68, dtype=np.uint32)
        assert index.add(found.copy())
    assert len(index._candidates(index._homes(found))) <= 64 * index._num_bands


def test_a_signature_is_the_same_in_every_version() -> None:
    found = signature(["one", "two", "three", "four", "five", "six"])
    assert found[:4].tolist() == [984630812, 833933089, 1167325145, 1194518338]


def test_words_are_lower_case_without_punctuation() -> None:
    messages = (Message("user", "Hi, THERE!"), Message("assistant", "東京です"))
    assert words_of(Conversation("", "", messages)) == ["hi", "there", "東", "京", "で", "す"]
    assert words_of(Text("", "", "?!")) == ["?!"]
    assert words_of(EventSequence("", "", np.array([3, 14], np.int32))) == ["3", "14"]


def test_long_texts_are_hashed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = signature(words(0, 1000))
    monkeypatch.setattr(near_duplicates, "_CHUNK_GRAMS", 100)
    assert (signature(words(0, 1000)) == expected).all()
