"""From a record to a conversation that is worth training on, or a sentence that says why not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finecut.dataprep.messages import ASSISTANT, SYSTEM, TOOL, USER, Message, ToolCall, kind
from finecut.dataprep.records import Record, RecordError
from finecut.dataprep.schemas import read_alpaca, read_openai, read_sharegpt, read_tools

__all__ = ["ASSISTANT", "SYSTEM", "TOOL", "USER", "Conversation", "Message", "ToolCall", "parse"]


@dataclass(frozen=True)
class Conversation:
    """At most one system message, then user and assistant in turn, the assistant last.

    What tools answer stands between two messages of the assistant. No content is blank, but beside tool calls.
    """

    source: str
    place: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()  # functions offered to the model, for the chat template


def parse(
    record: Record, messages_field: str = "messages", system_prompt: str | None = None, schema: str = "OPENAI"
) -> Conversation:
    """Reads a record in the layout of `schema`; ALPACA has no messages field.

    `system_prompt` becomes the system message of a record that has none. Raises RecordError.
    """
    content = record.content
    if not isinstance(content, dict):
        what = "an Alpaca record" if schema == "ALPACA" else f"an object with the field {messages_field!r}"
        raise RecordError(f"a {kind(content)} where {what} is expected")
    try:
        messages = _read(content, messages_field, schema)
        tools = read_tools(content) if schema != "ALPACA" else ()
    except RecursionError as error:
        raise RecordError("JSON that is nested too deeply") from error
    check_turns(messages, messages_field)
    _check_end(messages, messages_field)
    if system_prompt and messages[0].role != SYSTEM:
        messages.insert(0, Message(SYSTEM, system_prompt))
    return Conversation(record.source, record.place, tuple(messages), tools)


def _read(content: dict[str, Any], messages_field: str, schema: str) -> list[Message]:
    if schema == "ALPACA":
        return read_alpaca(content)
    return (read_sharegpt if schema == "SHAREGPT" else read_openai)(content, messages_field)


def check_turns(messages: Sequence[Message], field: str) -> None:
    """user, assistant, user, assistant ...; tools answer between two messages of the assistant. Raises RecordError."""
    previous = SYSTEM
    calls: int | None = None  # without an answer yet; None where calls may stand in the assistant's text
    for number, message in enumerate(messages):
        path = f"{field}[{number}].role"
        if message.role == SYSTEM:
            if number:
                raise RecordError(f"{path}: 'system', but only the first may be; user and assistant take turns")
            continue
        expected = _expected_after(previous, calls)
        if message.role not in expected:
            where = " or ".join(map(repr, expected))
            why = f"{calls} tool calls have no answer" if calls else "user and assistant take turns"
            raise RecordError(f"{path}: {message.role!r}, but {where} is expected here; {why}")
        if message.role == ASSISTANT:
            calls = len(message.tool_calls) or None
        elif calls:
            calls -= 1
        previous = message.role


def _expected_after(previous: str, calls: int | None) -> tuple[str, ...]:
    if calls:
        return (TOOL,)
    if previous == ASSISTANT:
        return (USER, TOOL)
    if previous == TOOL:
        return (ASSISTANT, TOOL) if calls is None else (ASSISTANT,)
    return (USER,) if previous == SYSTEM else (ASSISTANT,)


def _check_end(messages: Sequence[Message], field: str) -> None:
    if messages[-1].role != ASSISTANT:
        no_answer = all(message.role != ASSISTANT for message in messages)
        what = "there is no assistant message" if no_answer else f"the last message is the {messages[-1].role}'s"
        raise RecordError(f"{field}: {what}, so there is nothing to learn at the end; remove it or add the answer")
    if not any(message.trained for message in messages if message.role == ASSISTANT):
        raise RecordError(f"{field}: every assistant message has weight 0, so nothing would be trained; remove it")
