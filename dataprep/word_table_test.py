"""Words are asked for once, and few enough are remembered."""

from collections.abc import Sequence
from itertools import pairwise

import pytest

from finecut.dataprep import word_table
from finecut.dataprep.word_table import WordTable


class Asked:
    """Gives each word the ids of its characters, and remembers what it was asked."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []

    def __call__(self, words: Sequence[str]) -> list[list[int]]:
        self.words.append(list(words))
        return [list(map(ord, word)) for word in words]


def check(table: WordTable, words: list[str]) -> None:
    ids, borders = table.ids_of(words)
    assert "".join(map(chr, ids.tolist())) == "".join(words)
    assert [end - start for start, end in pairwise(borders.tolist())] == list(map(len, words))


def test_words_are_asked_for_once_and_in_one_order() -> None:
    asked = Asked()
    table = WordTable(asked)
    check(table, ["the", "cat", "and", "the", "dog"])
    check(table, ["the", "dog", "and", "a", "cat"])
    assert asked.words == [["and", "cat", "dog", "the"], ["a"]]


def test_few_words_are_remembered_and_long_ones_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_table, "MAX_KNOWN", 10)
    table, long = WordTable(Asked()), "x" * 1000
    for number in range(30):
        check(table, [f"word{number % 26}", long, f"of{number}", long, "the"])
        assert len(table) <= 10
        assert long not in table and "the" in table
        assert len(table._ids) < 100


def test_lines_of_any_length_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_table, "_SLICE", 3)
    table = WordTable(Asked())
    for number in range(10):
        check(table, [f"w{index % 4}" * (index % 3 + 1) for index in range(number)])
