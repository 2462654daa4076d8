"""Conversations: what is accepted, and the sentence for everything that is not."""

from typing import Any

import pytest

from finecut.dataprep.conversations import Message, parse
from finecut.dataprep.records import Record, RecordError

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind."}


def record(content: Any) -> Record:
    return Record("chats", "chats.jsonl:7", content)


def roles(*messages: dict[str, Any], **arguments: Any) -> list[str]:
    return [message.role for message in parse(record({"messages": list(messages)}), **arguments).messages]


def test_turns_are_kept_word_for_word() -> None:
    conversation = parse(record({"messages": [USER, {"role": "assistant", "content": " Hello\n"}], "id": 3}))
    assert conversation.messages == (Message("user", "Hi"), Message("assistant", " Hello\n"))
    assert conversation.place == "chats.jsonl:7"


def test_the_system_prompt_fills_in_but_never_replaces() -> None:
    assert roles(USER, ASSISTANT) == ["user", "assistant"]
    assert roles(USER, ASSISTANT, system_prompt="Be brief.") == ["system", "user", "assistant"]
    own = parse(record({"messages": [SYSTEM, USER, ASSISTANT]}), system_prompt="Be brief.")
    assert own.messages[0].content == "Be kind."


def test_another_field_may_hold_the_messages() -> None:
    assert len(parse(record({"chat": [USER, ASSISTANT]}), messages_field="chat").messages) == 2


def test_fields_that_are_null_count_as_absent() -> None:
    assert roles({**USER, "name": None}, ASSISTANT) == ["user", "assistant"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([USER], "a list where an object with the field 'messages' is expected"),
        (None, "a null where an object"),
        ({"prompt": "x"}, "no field 'messages'; the record has 'prompt'"),
        ({"messages": "x"}, "messages: a text where a list of messages is expected"),
        ({"messages": []}, "messages: the list is empty"),
        ({"messages": ["x"]}, r"messages\[0\]: a text where"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\].role: 'tool' is not one of"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\].role: None is not one of"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, r"messages\[0\].role: \['user'\] is not one of"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content: a null where text is expected"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"messages\[0\].content: a list where text"),
        (
            {"messages": [USER, {"role": "assistant", "content": " \n"}]},
            r"messages\[1\].content: the assistant message",
        ),
        (
            {"messages": [USER, {**ASSISTANT, "tool_calls": []}]},
            r"messages\[1\]: the field 'tool_calls' is not supported",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half of a surrogate pair at character 1"),
        ({"messages": [ASSISTANT, USER]}, r"messages\[0\].role: 'assistant', but 'user' is expected here"),
        ({"messages": [USER, USER]}, r"messages\[1\].role: 'user', but 'assistant' is expected here"),
        ({"messages": [USER, SYSTEM]}, r"messages\[1\].role: 'system', but only the first may be"),
        ({"messages": [SYSTEM]}, "there is no assistant message"),
        ({"messages": [USER]}, "there is no assistant message"),
        ({"messages": [USER, ASSISTANT, USER]}, "the last message is the user's"),
    ],
)
def test_refuses_with_a_reason(content: Any, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        parse(record(content))
