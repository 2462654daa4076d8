"""From a tree to a message: every name and type is checked, and every problem kept."""

import math
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from finecut.proto.config.errors import Problem, suggestion
from finecut.proto.config.tree import Mapping, Node, Scalar, Sequence, describe

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


class _MismatchError(Exception):
    """A value that does not fit its field; the text says why."""


def fill(message: Message, tree: Node, path: str = "") -> list[Problem]:
    """Sets the fields of `message` from a tree and returns what is wrong with it; good fields are set all the same."""
    if not isinstance(tree, Mapping):
        return [Problem(path, f"expected fields of {message.DESCRIPTOR.name}, found {describe(tree)}", tree.place)]
    problems: list[Problem] = []
    seen: set[str] = set()
    for entry in tree.entries:
        field = message.DESCRIPTOR.fields_by_name.get(entry.name)
        where = join(path, entry.name)
        if field is None:
            hint = suggestion(entry.name, [f.name for f in message.DESCRIPTOR.fields])
            problems.append(Problem(where, f"{message.DESCRIPTOR.name} has no field {entry.name}; {hint}", entry.place))
            continue
        problem = _clash(message, field, seen)
        if problem:
            problems.append(Problem(where, problem, entry.place))
            continue
        seen.add(field.name)
        problems += set_field(message, field, entry.value, where)
    return problems


def set_field(message: Message, field: FieldDescriptor, node: Node, path: str) -> list[Problem]:
    """Sets one field; a list, or a name that stands several times, adds to a repeated field."""
    if is_map(field):
        return _set_map(message, field, node, path)
    if not field.is_repeated:
        return _set_singular(message, field, node, path)
    items = node.items if isinstance(node, Sequence) else (node,)
    repeated = getattr(message, field.name)
    problems: list[Problem] = []
    for item in items:
        where = f"{path}[{len(repeated)}]"
        if field.message_type:
            problems += fill(repeated.add(), item, where)
            continue
        try:
            repeated.append(_scalar(field, item))
        except _MismatchError as wrong:
            problems.append(Problem(where, str(wrong), item.place))
    return problems


def is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _clash(message: Message, field: FieldDescriptor, seen: set[str]) -> str | None:
    """Why this field cannot be set beside the ones that are."""
    if field.is_repeated:
        return None
    if field.name in seen:
        return "is set twice; keep one"
    oneof = field.containing_oneof
    if oneof and len(oneof.fields) > 1 and (other := message.WhichOneof(oneof.name)):
        return f"only one of {', '.join(f.name for f in oneof.fields)} can be set, and {other} is"
    return None


def _set_singular(message: Message, field: FieldDescriptor, node: Node, path: str) -> list[Problem]:
    if field.message_type and not (field.message_type is Duration.DESCRIPTOR and isinstance(node, Scalar)):
        child = getattr(message, field.name)
        child.SetInParent()
        return fill(child, node, path)
    try:
        if field.message_type:
            getattr(message, field.name).CopyFrom(parse_duration(node))
        else:
            setattr(message, field.name, _scalar(field, node))
    except _MismatchError as wrong:
        return [Problem(path, str(wrong), node.place)]
    return []


def _set_map(message: Message, field: FieldDescriptor, node: Node, path: str) -> list[Problem]:
    """Text format writes a map as repeated {key, value}, YAML as a mapping. All our maps are text to text."""
    target = getattr(message, field.name)
    if isinstance(node, Mapping):
        pairs = {entry.name: entry.value for entry in node.entries}
        if set(pairs) == {"key", "value"} and not isinstance(pairs["key"], Mapping):
            pairs = {getattr(pairs["key"], "text", ""): pairs["value"]}
        if all(isinstance(value, Scalar) for value in pairs.values()):
            target.update({key: value.text for key, value in pairs.items() if isinstance(value, Scalar)})
            return []
    return [Problem(path, f"expected keys with text values, found {describe(node)}", node.place)]


def parse_duration(node: Node) -> Duration:
    """ "90s" or "0.5s" as in protobuf's JSON form."""
    duration = Duration()
    try:
        duration.FromJsonString(node.text)  # type: ignore[union-attr]
    except ValueError:
        raise _MismatchError(f'expected a duration such as "90s", found {describe(node)}') from None
    return duration


def _scalar(field: FieldDescriptor, node: Node) -> Any:
    kind = field.cpp_type
    if not isinstance(node, Scalar):
        raise _MismatchError(f"expected {_expected(field)}, found {describe(node)}")
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return node.text
    if node.quoted:
        raise _MismatchError(f"expected {_expected(field)}, found {describe(node)}; remove the quotes")
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        if node.text not in ("true", "false"):
            raise _MismatchError(f"expected true or false, found {node.text}")
        return node.text == "true"
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _enum(field, node.text)
    if kind in _INTEGERS:
        return _integer(node.text, *_INTEGERS[kind])
    assert kind in _FLOATS, field.full_name
    return _number(node.text)


def _enum(field: FieldDescriptor, text: str) -> int:
    value = field.enum_type.values_by_name.get(text)
    if value is None or value.number == 0:
        raise _MismatchError(f"{text} is not a {field.enum_type.name}; {suggestion(text, enum_names(field))}")
    return value.number


def enum_names(field: FieldDescriptor) -> list[str]:
    """Values that a user may write."""
    return [value.name for value in field.enum_type.values if value.number]


def _integer(text: str, low: int, high: int) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        raise _MismatchError(f"expected a whole number, found {text}") from None
    if not low <= number <= high:
        raise _MismatchError(f"{text} does not fit; the range is {low} to {high}")
    return number


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise _MismatchError(f"expected a number, found {text}") from None
    if not math.isfinite(number):
        raise _MismatchError(f"expected a finite number, found {text}")
    return number


def _expected(field: FieldDescriptor) -> str:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return "text"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "true or false"
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return f"one of {', '.join(enum_names(field))}"
    return "a whole number" if field.cpp_type in _INTEGERS else "a number"
