"""Preference records: every layout that is read, and a reason for each that is not."""

from typing import Any

import pytest

from finecut.dataprep.config import PreferenceConfig
from finecut.dataprep.messages import ASSISTANT, SYSTEM, USER, Message
from finecut.dataprep.preferences import Preference, parse
from finecut.dataprep.records import Record, RecordError

USER_HI, SYSTEM_KIND = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be kind."}
HELLO, GO = {"role": "assistant", "content": "Hello"}, {"role": "assistant", "content": "Go away"}


def read(content: Any, margin_field: str | None = None) -> Preference:
    return parse(Record("pairs", "pairs.jsonl:3", content), PreferenceConfig(margin_field=margin_field))


def conversation(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return list(messages)


@pytest.mark.parametrize(
    "content",
    [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
        {"prompt": [USER_HI], "chosen": [HELLO], "rejected": [GO]},
        {"prompt": [USER_HI], "chosen": HELLO, "rejected": "Go away"},
        {"chosen": [USER_HI, HELLO], "rejected": [USER_HI, GO]},
        {"prompt": "Hi", "chosen": [USER_HI, HELLO], "rejected": [USER_HI, GO], "score": 3},
        {"prompt": [USER_HI], "chosen": [USER_HI, HELLO], "rejected": [USER_HI, GO]},
        {"prompt": None, "chosen": [USER_HI, HELLO], "rejected": [USER_HI, GO]},
    ],
)
def test_all_layouts_are_the_same_pair(content: dict[str, Any]) -> None:
    found = read(content)
    assert found.prompt == (Message(USER, "Hi"),)
    assert (found.chosen, found.rejected) == (Message(ASSISTANT, "Hello"), Message(ASSISTANT, "Go away"))
    assert (found.source, found.place, found.margin) == ("pairs", "pairs.jsonl:3", None)


def test_nothing_of_the_prompt_is_trained() -> None:
    history = conversation(SYSTEM_KIND, USER_HI, HELLO, USER_HI)
    chosen, rejected = read({"prompt": "Hi", "chosen": [*history, HELLO], "rejected": [*history, GO]}).conversations()
    assert [message.role for message in chosen.messages] == [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]
    assert [message.trained for message in rejected.messages if message.role == ASSISTANT] == [False, True]
    assert chosen.messages[:-1] == rejected.messages[:-1]


@pytest.mark.parametrize("margin", [0, 1.5, 3])
def test_a_margin_is_a_number_from_zero_on(margin: float) -> None:
    assert read({"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": margin}, "margin").margin == margin


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rejected": "Hello"}, "chosen and rejected are equal"),
        ({"chosen": ""}, "chosen: the answer is empty"),
        (
            {"rejected": [{"role": "assistant", "content": " "}]},
            r"rejected\[0\].content: the assistant message is empty",
        ),
        ({"chosen": None}, "chosen: a null where a list of messages"),
        ({"chosen": 5}, "chosen: a number where a list of messages"),
        ({"chosen": []}, "chosen: the list is empty"),
        ({"chosen": [USER_HI]}, "chosen: the last message is the user's"),
        ({"chosen": [USER_HI, HELLO]}, "answer different prompts"),
        ({"chosen": [USER_HI, HELLO], "rejected": [SYSTEM_KIND, GO]}, "answer different prompts"),
        ({"prompt": "Hey", "chosen": [USER_HI, HELLO], "rejected": [USER_HI, GO]}, "are not those of prompt"),
        ({"chosen": [{**HELLO, "weight": 0}]}, "chosen: the answer has weight 0"),
        ({"prompt": None}, "no field 'prompt'"),
        ({"prompt": " "}, "prompt: the text is empty"),
        ({"prompt": [USER_HI, HELLO]}, "prompt: the last message is the assistant's; a prompt ends with"),
        ({"prompt": [SYSTEM_KIND]}, "prompt: the last message is the system's"),
        ({"prompt": None, "chosen": [HELLO, HELLO], "rejected": [HELLO, GO]}, r"chosen\[0\].role: 'assistant'"),
        ({"margin": "2"}, "margin: a text where a number"),
        ({"margin": True}, "margin: a boolean where a number"),
        ({"margin": -1}, "margin: -1 is no margin"),
        ({"margin": float("nan")}, "margin: nan is no margin"),
        ({"margin": 10**400}, "margin: 1000"),
    ],
)
def test_refuses_with_a_reason(changes: dict[str, Any], reason: str) -> None:
    good = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away", "margin": 1}
    with pytest.raises(RecordError, match=reason):
        read({**good, **changes}, "margin")


@pytest.mark.parametrize("field", ["chosen", "rejected", "margin"])
def test_a_missing_field_is_named_with_those_there_are(field: str) -> None:
    content = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away", "margin": 1}
    del content[field]
    with pytest.raises(RecordError, match=f"no field '{field}'; the record has 'prompt', "):
        read(content, "margin")


def test_a_record_that_is_no_object_is_refused() -> None:
    with pytest.raises(RecordError, match="a list where an object with the fields 'chosen' and 'rejected'"):
        read([])
