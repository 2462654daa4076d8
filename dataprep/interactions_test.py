"""Interaction logs: which events a template sees, and every way a log can be wrong."""

from typing import Any

import pytest

from finecut.dataprep.config import InteractionConfig
from finecut.dataprep.interactions import InteractionParser
from finecut.dataprep.messages import Message
from finecut.dataprep.records import Record, RecordError
from finecut.proto.config import UserError

PROMPT = "{{ name }} saw {% for event in events %}{{ event.title }}, {% endfor %}and then?"
ANSWER = "{{ event.title }}"


def parse(content: Any, prompt: str = PROMPT, answer: str = ANSWER, **fields: Any) -> tuple[Message, ...]:
    record = Record("log", "log.jsonl:3", content)
    return InteractionParser(InteractionConfig(prompt, answer, **fields)).parse(record).messages


def log(*titles: Any, **fields: Any) -> dict[str, Any]:
    return {"events": [{"title": title} for title in titles], "name": "Ada", **fields}


def test_the_last_event_is_the_answer_and_the_others_are_the_prompt() -> None:
    assert parse(log("b", "a", "c")) == (Message("user", "Ada saw b, a, and then?"), Message("assistant", "c"))


def test_only_the_most_recent_events_are_seen() -> None:
    assert parse(log("a", "b", "c", "d"), max_events=3)[0].content == "Ada saw b, c, and then?"


def test_another_field_may_hold_the_events_and_never_shows_the_answer() -> None:
    content = {"views": log("a", "b")["events"]}
    prompt, _ = parse(content, prompt="{{ views | length }} {{ events | length }}", events_field="views")
    assert prompt.content == "1 1"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "a list where an object with the field 'events' is expected"),
        ({"event": []}, "no field 'events'; the record has 'event'"),
        ({"events": "x"}, "events: a text where a list of events"),
        (log("a"), "events: 1 events; a record needs 2"),
        ({"events": [{"title": "a"}, {"title": "b"}]}, "interaction.prompt_template: 'name' is undefined"),
        ({**log("a"), "events": [{"title": "a"}, {}]}, "interaction.answer_template: .* has no attribute 'title'"),
        (log("a", " "), "interaction.answer_template: gives an empty message"),
        (log("\ud800", "b"), "interaction.prompt_template: half of a surrogate pair"),
    ],
)
def test_refuses_with_a_reason(content: Any, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        parse(content)


def test_the_answer_is_not_known_to_the_prompt() -> None:
    with pytest.raises(RecordError, match="'event' is undefined"):
        parse(log("a", "b"), prompt="{{ event.title }}")


def test_a_broken_template_is_refused_before_any_record() -> None:
    with pytest.raises(UserError, match=r"interaction.answer_template: not a Jinja template"):
        InteractionParser(InteractionConfig("x", "{{"))
