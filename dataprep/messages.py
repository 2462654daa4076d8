"""Messages of a conversation, and the checks that hold for any text in them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finecut.dataprep.records import RecordError

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
# The longest block has 2^20 tokens, and a token of prose about four characters. A longer text cannot be used, and
# tokenizing it first would take gigabytes.
MAX_CHARACTERS = 4 << 20


@dataclass(frozen=True)
class ToolCall:
    """A function that the assistant asks for: {"name": "weather", "arguments": {"city": "Zürich"}}."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None

    def texts(self) -> Iterator[str]:
        """The name and every scalar in the arguments, as JSON writes it (text without its quotes)."""
        yield self.name
        yield from _leaves(self.arguments)

    def as_dict(self) -> dict[str, Any]:
        """The layout that chat templates read, in which arguments are an object."""
        call: dict[str, Any] = {"type": "function", "function": {"name": self.name, "arguments": dict(self.arguments)}}
        return call if self.id is None else {"id": self.id, **call}


@dataclass(frozen=True)
class Message:
    """One turn. `content` is blank only beside tool calls."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()  # of the assistant
    trained: bool = True  # False: an assistant message of weight 0; nothing of the other roles is ever trained
    name: str | None = None  # of the tool that answers
    tool_call_id: str | None = None  # of the call that a tool answers

    def texts(self) -> Iterator[str]:
        """Everything in it that the template may write."""
        yield self.content
        for call in self.tool_calls:
            yield from call.texts()
        yield from (text for text in (self.name, self.tool_call_id) if text)

    def as_dict(self) -> dict[str, Any]:
        """The layout that chat templates read."""
        fields: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            fields["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        if self.name is not None:
            fields["name"] = self.name
        if self.tool_call_id is not None:
            fields["tool_call_id"] = self.tool_call_id
        return fields


def check_text(value: Any, path: str) -> str:
    """The value, where it is text that can be encoded and is not out of all proportion. Raises RecordError."""
    if not isinstance(value, str):
        raise RecordError(f"{path}: a {kind(value)} where text is expected")
    if len(value) > MAX_CHARACTERS:
        raise RecordError(f"{path}: {len(value):,} characters; a text may have {MAX_CHARACTERS:,}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RecordError(f"{path}: half of a surrogate pair at character {error.start + 1}") from error
    return value


def check_json(value: Any, path: str) -> None:
    """Checks every text in a JSON value as `check_text` does. Raises RecordError."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_text(name, path)
            check_json(item, f"{path}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            check_json(item, f"{path}[{number}]")
    elif isinstance(value, str):
        check_text(value, path)
    elif not (value is None or isinstance(value, bool | int | float)):
        raise RecordError(f"{path}: a {kind(value)} where a JSON value is expected")


def kind(value: Any) -> str:
    """JSON's word for a Python value."""
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def _leaves(value: Any) -> Iterator[str]:
    """Scalars of a JSON value as text."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value if isinstance(value, str) else json.dumps(value)
