"""Layouts of conversations seen in public data, each read into the same messages.

A field that changes what should be learned is either understood or refused; reading past it would be silent damage.
"""

import json
from collections.abc import Mapping
from typing import Any

from finecut.dataprep.messages import (
    ASSISTANT,
    SYSTEM,
    TOOL,
    USER,
    Message,
    ToolCall,
    check_json,
    check_text,
    kind,
)
from finecut.dataprep.records import RecordError

_FIELDS_OF_ROLE = {
    SYSTEM: frozenset({"role", "content"}),
    USER: frozenset({"role", "content"}),
    ASSISTANT: frozenset({"role", "content", "tool_calls", "weight"}),
    TOOL: frozenset({"role", "content", "name", "tool_call_id"}),
}
_CALL = "function_call"
_SHAREGPT_ROLES = {
    "system": SYSTEM,
    "human": USER,
    "user": USER,
    "gpt": ASSISTANT,
    "assistant": ASSISTANT,
    _CALL: _CALL,
    "tool": TOOL,
    "observation": TOOL,
    "function_response": TOOL,
}


def read_openai(content: Mapping[str, Any], field: str) -> list[Message]:
    """{field: [{"role": ..., "content": ...}]}, also with tool calls, tool answers and weights. Raises RecordError."""
    return [_openai_message(item, f"{field}[{number}]") for number, item in enumerate(_list(content, field))]


def read_sharegpt(content: Mapping[str, Any], field: str) -> list[Message]:
    """{field: [{"from": ..., "value": ...}]}, with a "system" beside it or not. Raises RecordError."""
    messages = [_sharegpt_message(item, f"{field}[{number}]") for number, item in enumerate(_list(content, field))]
    return _with_system(content, messages)


def read_alpaca(content: Mapping[str, Any]) -> list[Message]:
    """{"instruction", "input", "output"}: an input that is not empty follows the instruction. Raises RecordError."""
    if content.get("history"):
        raise RecordError("history: earlier turns are not part of an Alpaca record; use the schema OPENAI or SHAREGPT")
    for field in ("instruction", "output"):
        if field not in content:
            raise missing(content, field)
    question = _content(content["instruction"], "instruction", USER)
    if content.get("input") is not None and (details := check_text(content["input"], "input")).strip():
        question = f"{question}\n\n{details}"
    answer = _content(content["output"], "output", ASSISTANT)
    return _with_system(content, [Message(USER, question), Message(ASSISTANT, answer)])


def read_tools(content: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The functions that the record's field "tools" offers the model: a list, or JSON of one. Raises RecordError."""
    tools = content.get("tools")
    if isinstance(tools, str):
        tools = _json(tools, "tools") if tools.strip() else None
    if tools is None:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RecordError(f"tools: a {kind(tools)} where a list of objects is expected")
    check_json(tools, "tools")
    return tuple(tools)


def _list(content: Mapping[str, Any], field: str) -> list[Any]:
    if field not in content:
        raise missing(content, field)
    items = content[field]
    if not isinstance(items, list):
        raise RecordError(f"{field}: a {kind(items)} where a list of messages is expected")
    if not items:
        raise RecordError(f"{field}: the list is empty")
    return items


def missing(content: Mapping[str, Any], field: str) -> RecordError:
    """Names the fields that there are instead."""
    fields = ", ".join(map(repr, list(content)[:20])) or "no field at all"
    return RecordError(f"no field {field!r}; the record has {fields}")


def _openai_message(item: Any, path: str) -> Message:
    if not isinstance(item, dict):
        raise RecordError(f"{path}: a {kind(item)} where {{'role': ..., 'content': ...}} is expected")
    role = item.get("role")
    if not isinstance(role, str) or role not in _FIELDS_OF_ROLE:
        raise RecordError(f"{path}.role: {role!r} is not one of 'system', 'user', 'assistant', 'tool'")
    _check_fields(item, _FIELDS_OF_ROLE[role], path, f" in a message of the {role}")
    calls = _tool_calls(item.get("tool_calls"), f"{path}.tool_calls")
    if calls and item.get("content") is None:
        content = ""
    elif calls:
        content = check_text(item["content"], f"{path}.content")
    else:
        content = _content(item.get("content"), f"{path}.content", role)
    return Message(
        role,
        content,
        calls,
        trained=_weight(item.get("weight"), f"{path}.weight"),
        name=_optional_text(item, "name", path),
        tool_call_id=_optional_text(item, "tool_call_id", path),
    )


def _sharegpt_message(item: Any, path: str) -> Message:
    if not isinstance(item, dict):
        raise RecordError(f"{path}: a {kind(item)} where {{'from': ..., 'value': ...}} is expected")
    _check_fields(item, frozenset({"from", "value", "weight"}), path)
    who = item.get("from")
    if not isinstance(who, str) or who not in _SHAREGPT_ROLES:
        raise RecordError(f"{path}.from: {who!r} is not one of {', '.join(map(repr, _SHAREGPT_ROLES))}")
    role = _SHAREGPT_ROLES[who]
    if item.get("weight") is not None and role not in (ASSISTANT, _CALL):
        raise RecordError(f"{path}.weight: only what the assistant says is ever trained; remove it")
    trained = _weight(item.get("weight"), f"{path}.weight")
    content = _content(item.get("value"), f"{path}.value", who)
    if role != _CALL:
        return Message(role, content, trained=trained)
    value = _json(content, f"{path}.value")
    calls = value if isinstance(value, list) else [value]
    return Message(ASSISTANT, "", _tool_calls(calls, f"{path}.value"), trained=trained)


def _with_system(content: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """ShareGPT's and Alpaca's system message stands beside the turns; blank means that there is none."""
    if content.get("system") is None or not check_text(content["system"], "system").strip():
        return messages
    if messages[0].role == SYSTEM:
        raise RecordError("system: there is a system message among the messages too; remove one")
    return [Message(SYSTEM, content["system"]), *messages]


def _check_fields(item: Mapping[str, Any], known: frozenset[str], path: str, where: str = "") -> None:
    extra = sorted(str(name) for name, value in item.items() if name not in known and value is not None)
    if extra:
        raise RecordError(f"{path}: the field {extra[0]!r} is not supported{where}; remove it")


def _content(value: Any, path: str, role: str) -> str:
    content = check_text(value, path)
    if not content.strip():
        raise RecordError(f"{path}: the {role} message is empty")
    return content


def _optional_text(item: Mapping[str, Any], field: str, path: str) -> str | None:
    return None if item.get(field) is None else check_text(item[field], f"{path}.{field}")


def _weight(value: Any, path: str) -> bool:
    if value is None:
        return True
    if isinstance(value, bool) or value not in (0, 1):
        raise RecordError(f"{path}: {_short(value)} is neither 0 (not trained) nor 1 (trained)")
    return value == 1


def _tool_calls(items: Any, path: str) -> tuple[ToolCall, ...]:
    if items is None:
        return ()
    if not isinstance(items, list):
        raise RecordError(f"{path}: a {kind(items)} where a list of calls is expected")
    return tuple(_tool_call(item, f"{path}[{number}]") for number, item in enumerate(items))


def _tool_call(item: Any, path: str) -> ToolCall:
    """OpenAI's {"id", "type": "function", "function": {"name", "arguments"}}, or the function alone."""
    if not isinstance(item, dict):
        raise RecordError(f"{path}: a {kind(item)} where a call is expected")
    function = item
    if item.get("function") is not None:
        _check_fields(item, frozenset({"id", "type", "function", "index"}), path)
        function = item["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise RecordError(f"{path}: no function name; write {{'function': {{'name': ..., 'arguments': ...}}}}")
    _check_fields(function, frozenset({"id", "type", "name", "arguments"}), path)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _json(check_text(arguments, f"{path}.arguments"), f"{path}.arguments")
    if not isinstance(arguments, dict):
        raise RecordError(f"{path}.arguments: a {kind(arguments)} where an object is expected")
    check_json(arguments, f"{path}.arguments")
    name = check_text(function["name"], f"{path}.name")
    return ToolCall(name, arguments, _optional_text(item, "id", path))


def _json(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(f"{path}: not JSON: {error.msg} at column {error.colno}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
