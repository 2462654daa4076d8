"""The dialogues: every line is a valid conversation, and entries become what the corpus means by them."""

import json
from collections import Counter
from pathlib import Path

from finecut.dataprep import conversations
from finecut.dataprep.records import Record
from finecut.examples.quickstart.write_dialogues import conversations_of, without_duplicates

LINES = (Path(__file__).parent / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()


def test_every_line_is_a_different_valid_conversation() -> None:
    parsed = [conversations.parse(Record("", f"{n}", json.loads(line))).messages for n, line in enumerate(LINES, 1)]
    assert len(parsed) == len(set(parsed)) > 1000
    assert sum(len(messages) > 2 for messages in parsed) > 10


def test_alternative_answers_become_conversations_of_their_own() -> None:
    found = list(conversations_of("emotion.yml", ["You are jealous", "No, I'm not.", "Of what?"], Counter()))
    assert found == [("You are jealous", "No, I'm not."), ("You are jealous", "Of what?")]


def test_a_dialogue_keeps_its_turns_and_loses_an_unanswered_one() -> None:
    counts: Counter[str] = Counter()
    assert list(conversations_of("health.yml", ["a", "b", "c", "d"], counts)) == [("a", "b", "c", "d")]
    assert list(conversations_of("health.yml", ["a", "b", "c"], counts)) == [("a", "b")]
    assert counts == {"last turns left out because nobody answers": 1}


def test_an_entry_with_an_empty_turn_is_refused_and_counted() -> None:
    counts: Counter[str] = Counter()
    assert not list(conversations_of("trivia.yml", ["I", "n", " "], counts))
    assert counts == {"entries refused for an empty turn": 1}


def test_duplicates_are_counted() -> None:
    counts: Counter[str] = Counter()
    assert list(without_duplicates(iter([("a", "b"), ("a", "c"), ("a", "b")]), counts)) == [("a", "b"), ("a", "c")]
    assert counts == {"exact duplicates left out": 1}
