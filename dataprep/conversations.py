"""From a record to a conversation that is worth training on, or a sentence that says why not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finecut.dataprep.records import Record, RecordError

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
_KNOWN_FIELDS = frozenset({"role", "content"})


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """At most one system message, then user and assistant in turn, the assistant last. No content is blank."""

    source: str
    place: str
    messages: tuple[Message, ...]


def parse(record: Record, messages_field: str = "messages", system_prompt: str | None = None) -> Conversation:
    """Reads OpenAI's layout, {messages_field: [{"role": ..., "content": ...}]}.

    `system_prompt` becomes the system message of a record that has none. Raises RecordError.
    """
    if not isinstance(record.content, dict):
        raise RecordError(f"a {_kind(record.content)} where an object with the field {messages_field!r} is expected")
    if messages_field not in record.content:
        fields = ", ".join(map(repr, record.content)) or "no field at all"
        raise RecordError(f"no field {messages_field!r}; the record has {fields}")
    items = record.content[messages_field]
    if not isinstance(items, list):
        raise RecordError(f"{messages_field}: a {_kind(items)} where a list of messages is expected")
    if not items:
        raise RecordError(f"{messages_field}: the list is empty")
    messages = [_parse_message(item, f"{messages_field}[{number}]") for number, item in enumerate(items)]
    _check_order(messages, messages_field)
    if system_prompt and messages[0].role != SYSTEM:
        messages.insert(0, Message(SYSTEM, system_prompt))
    return Conversation(record.source, record.place, tuple(messages))


def _parse_message(item: Any, path: str) -> Message:
    if not isinstance(item, dict):
        raise RecordError(f"{path}: a {_kind(item)} where {{'role': ..., 'content': ...}} is expected")
    extra = sorted(name for name, value in item.items() if name not in _KNOWN_FIELDS and value is not None)
    if extra:
        # Tool calls, names or weights change what should be learned; reading past them would be silent damage.
        raise RecordError(f"{path}: the field {extra[0]!r} is not supported; remove it")
    role, content = item.get("role"), item.get("content")
    if role not in (SYSTEM, USER, ASSISTANT):
        raise RecordError(f"{path}.role: {role!r} is not one of 'system', 'user', 'assistant'")
    if not isinstance(content, str):
        raise RecordError(f"{path}.content: a {_kind(content)} where text is expected")
    if not content.strip():
        raise RecordError(f"{path}.content: the {role} message is empty")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise RecordError(f"{path}.content: half of a surrogate pair at character {error.start + 1}") from error
    return Message(role, content)


def _check_order(messages: Sequence[Message], field: str) -> None:
    expected = USER
    for number, message in enumerate(messages):
        if number == 0 and message.role == SYSTEM:
            continue
        if message.role != expected:
            where = "only the first may be" if message.role == SYSTEM else f"{expected!r} is expected here"
            raise RecordError(f"{field}[{number}].role: {message.role!r}, but {where}; user and assistant take turns")
        expected = ASSISTANT if expected == USER else USER
    if messages[-1].role != ASSISTANT:
        no_answer = all(message.role != ASSISTANT for message in messages)
        what = "there is no assistant message" if no_answer else f"the last message is the {messages[-1].role}'s"
        raise RecordError(f"{field}: {what}, so there is nothing to learn at the end; remove it or add the answer")


def _kind(value: Any) -> str:
    """JSON's word for a Python value."""
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
