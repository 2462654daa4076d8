"""Conversations: what is accepted, and the sentence for everything that is not."""

from typing import Any

import pytest

from finecut.dataprep.conversations import Conversation, Message, ToolCall, parse
from finecut.dataprep.records import Record, RecordError

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind."}
TOOL = {"role": "tool", "content": "21 degrees", "tool_call_id": "a1"}


def call(arguments: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "a1", "type": "function", "function": function}],
    }


CALL = call('{"city": "Paris"}')


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
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\].role: 'tool', but 'user' is expected"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"messages\[0\].role: 'bot' is not one of"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\].role: None is not one of"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, r"messages\[0\].role: \['user'\] is not one of"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content: a null where text is expected"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"messages\[0\].content: a list where text"),
        (
            {"messages": [USER, {"role": "assistant", "content": " \n"}]},
            r"messages\[1\].content: the assistant message",
        ),
        (
            {"messages": [USER, {**ASSISTANT, "audio": {}}]},
            r"messages\[1\]: the field 'audio' is not supported in a message of the assistant",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half of a surrogate pair at character 1"),
        ({"messages": [ASSISTANT, USER]}, r"messages\[0\].role: 'assistant', but 'user' is expected here"),
        ({"messages": [USER, USER]}, r"messages\[1\].role: 'user', but 'assistant' is expected here"),
        ({"messages": [USER, SYSTEM]}, r"messages\[1\].role: 'system', but only the first may be"),
        ({"messages": [SYSTEM]}, "there is no assistant message"),
        ({"messages": [USER]}, "there is no assistant message"),
        ({"messages": [USER, ASSISTANT, USER]}, "the last message is the user's"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, r"messages\[1\].weight: 0.5 is neither 0"),
        ({"messages": [USER, {**ASSISTANT, "weight": True}]}, r"messages\[1\].weight: True is neither 0"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "every assistant message has weight 0"),
        ({"messages": [{**USER, "weight": 1}, ASSISTANT]}, "'weight' is not supported in a message of the user"),
        ({"messages": [USER, CALL, ASSISTANT]}, "'assistant', but 'tool' is expected here; 1 tool calls have no"),
        ({"messages": [USER, CALL, TOOL, TOOL, ASSISTANT]}, r"messages\[3\].role: 'tool', but 'assistant' is exp"),
        ({"messages": [USER, CALL, TOOL]}, "the last message is the tool's"),
        ({"messages": [USER, {**CALL, "tool_calls": "x"}]}, r"tool_calls: a text where a list of calls"),
        ({"messages": [USER, {**CALL, "tool_calls": ["x"]}]}, r"tool_calls\[0\]: a text where a call"),
        ({"messages": [USER, {**CALL, "tool_calls": [{"function": {}}]}]}, r"tool_calls\[0\]: no function name"),
        ({"messages": [USER, call("[1]")]}, r"tool_calls\[0\].arguments: a list where an object"),
        ({"messages": [USER, call("{")]}, r"tool_calls\[0\].arguments: not JSON: .* at column 2"),
        ({"messages": [USER, call({"city": "\ud800"})]}, r"arguments.city: half of a surrogate pair"),
        ({"messages": [USER, ASSISTANT], "tools": [1]}, "tools: a list where a list of objects"),
        ({"messages": [USER, ASSISTANT], "tools": "oops"}, "tools: not JSON"),
        ({"messages": [USER, {**ASSISTANT, "content": "x" * 10_000_000}]}, r"10,000,000 characters; a text may have"),
    ],
)
def test_refuses_with_a_reason(content: Any, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        parse(record(content))


def test_tool_calls_and_their_answers_are_kept() -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    found = parse(record({"messages": [USER, CALL, TOOL, ASSISTANT], "tools": tools}))
    assert found.messages[1] == Message("assistant", "", (ToolCall("weather", {"city": "Paris"}, "a1"),))
    assert found.messages[2] == Message("tool", "21 degrees", tool_call_id="a1")
    assert found.tools == tuple(tools)
    function = {"name": "weather", "arguments": {"city": "Paris"}}
    assert found.messages[1].as_dict()["tool_calls"] == [{"id": "a1", "type": "function", "function": function}]


def test_a_tool_may_answer_a_call_that_is_written_as_text() -> None:
    assert roles(USER, ASSISTANT, TOOL, TOOL, ASSISTANT) == ["user", "assistant", "tool", "tool", "assistant"]


def test_weight_zero_leaves_a_turn_out_of_training() -> None:
    weighted = parse(record({"messages": [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}]}))
    assert [message.trained for message in weighted.messages if message.role == "assistant"] == [False, True]


def sharegpt(*turns: tuple[str, Any], **fields: Any) -> Conversation:
    content = {"conversations": [{"from": who, "value": value} for who, value in turns], **fields}
    return parse(record(content), "conversations", schema="SHAREGPT")


def test_sharegpt_reads_into_the_same_messages() -> None:
    found = sharegpt(("human", "Hi"), ("gpt", "Hello"), system="Be kind.", id="x7")
    assert found.messages == (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello"))


def test_sharegpt_function_calls_become_tool_calls() -> None:
    call = '{"name": "weather", "arguments": {"city": "Paris"}}'
    found = sharegpt(("human", "Hi"), ("function_call", call), ("observation", "21"), ("gpt", "Mild."), tools="[{}]")
    assert [message.role for message in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.messages[1].tool_calls == (ToolCall("weather", {"city": "Paris"}),)
    assert found.tools == ({},)


@pytest.mark.parametrize(
    ("turns", "fields", "reason"),
    [
        ([("gpt", "Hello")], {}, r"conversations\[0\].role: 'assistant', but 'user' is expected here"),
        ([("bot", "Hello")], {}, r"conversations\[0\].from: 'bot' is not one of 'system', 'human'"),
        ([("human", 3)], {}, r"conversations\[0\].value: a number where text"),
        ([("human", " ")], {}, r"conversations\[0\].value: the human message is empty"),
        ([("system", "x"), ("human", "Hi"), ("gpt", "Hello")], {"system": "y"}, "system: there is a system message"),
        ([("human", "Hi"), ("function_call", "weather()")], {}, r"conversations\[1\].value: not JSON"),
    ],
)
def test_sharegpt_refuses_with_a_reason(turns: list[tuple[str, Any]], fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        sharegpt(*turns, **fields)


def alpaca(**fields: Any) -> list[str]:
    return [message.content for message in parse(record(fields), schema="ALPACA").messages]


def test_alpaca_puts_the_input_after_the_instruction() -> None:
    assert alpaca(instruction="Add.", input="1 2", output="3") == ["Add.\n\n1 2", "3"]
    assert alpaca(instruction="Hi", input="", output="Hello", system="Be kind.") == ["Be kind.", "Hi", "Hello"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"instruction": "Hi"}, "no field 'output'; the record has 'instruction'"),
        ({"instruction": "Hi", "output": ""}, "output: the assistant message is empty"),
        ({"instruction": "Hi", "output": 3}, "output: a number where text"),
        ({"instruction": "Hi", "input": 3, "output": "x"}, "input: a number where text"),
        ({"instruction": "Hi", "output": "x", "history": [["a", "b"]]}, "history: earlier turns are not part"),
    ],
)
def test_alpaca_refuses_with_a_reason(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        alpaca(**fields)
