"""Filters: what each condition leaves out, and that it is counted."""

import random
from typing import Any

import numpy as np
import pytest

from finecut.dataprep.config import FilterConfig
from finecut.dataprep.digests import DigestSet
from finecut.dataprep.documents import Document
from finecut.dataprep.filtering import Filter
from finecut.dataprep.records import Record, RecordError


def record(content: Any) -> Record:
    return Record("chats", "chats.jsonl:7", content)


def document(length: int) -> Document:
    return Document(np.zeros(length, dtype=np.int32), np.ones(length, dtype=bool))


def test_without_conditions_everything_is_kept() -> None:
    wanted = Filter(FilterConfig())
    assert wanted.keeps_record(record(["not even an object"]))
    assert wanted.keeps_document("a", document(1)) and wanted.keeps_document("a", document(1))
    assert wanted.summary() == ""


def test_an_expression_sees_fields_and_the_record() -> None:
    wanted = Filter(FilterConfig(expression="score >= 3 and 'a-b' in record"))
    kept = [wanted.keeps_record(record({"score": score, "a-b": 0})) for score in (2, 3)]
    assert kept == [False, True]
    assert wanted.removed == {("chats", "expression"): 1}
    with pytest.raises(RecordError, match=r"filter.expression: 'score' is undefined"):
        wanted.keeps_record(record({}))
    with pytest.raises(RecordError, match="a list where an object"):
        wanted.keeps_record(record([]))


@pytest.mark.parametrize(
    ("tag", "kept"), [("en", True), ("EN", True), ("en-GB", True), ("eng", False), ("de", False), ("", False)]
)
def test_languages_match_by_their_first_parts(tag: str, kept: bool) -> None:
    wanted = Filter(FilterConfig(language_field="lang", languages=("fr", "en")))
    assert wanted.keeps_record(record({"lang": tag})) == kept


def test_a_record_without_a_language_is_a_bad_one() -> None:
    wanted = Filter(FilterConfig(language_field="lang", languages=("en",)))
    with pytest.raises(RecordError, match="no field 'lang'"):
        wanted.keeps_record(record({}))
    with pytest.raises(RecordError, match="lang: a null where a language tag"):
        wanted.keeps_record(record({"lang": None}))


def test_lengths_and_duplicates_are_counted_by_source() -> None:
    wanted = Filter(FilterConfig(min_tokens=2, max_tokens=4, remove_duplicates=True))
    kept = [wanted.keeps_document("a", document(length)) for length in (1, 2, 4, 5)]
    assert kept == [False, True, True, False]
    assert not wanted.keeps_document("b", document(2))
    assert wanted.removed == {("a", "min_tokens"): 1, ("a", "max_tokens"): 1, ("b", "duplicates"): 1}
    assert wanted.summary() == "filter left out 1 by duplicates, 1 by max_tokens, 1 by min_tokens"


def test_a_digest_set_is_a_set_in_little_memory() -> None:
    generator = random.Random(0)
    digests = [generator.randbytes(16) for _ in range(5000)]
    ends = [bytes(8) + generator.randbytes(8) for _ in range(50)] + [b"\xff" * 8 + bytes([n]) * 8 for n in range(50)]
    found, expected = DigestSet(), set()
    for digest in digests + ends + generator.sample(digests, 3000):
        assert found.add(digest) == (digest not in expected)
        expected.add(digest)
    assert len(found) == len(expected) == 5100
    assert len(found._slots) <= 48 * len(found)
