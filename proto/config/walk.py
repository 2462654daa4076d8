"""Walking a message with the rules that its fields carry."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message

from finecut.proto import rules_pb2
from finecut.proto.config.build import is_map, join


@dataclass(slots=True)  # not frozen: a job has hundreds, and a frozen one takes three times as long to make
class Visit:
    """One field that is set.

    Attributes:
      path: Field path, with an index in a repeated field.
      parent: The message that holds the field.
      value: The value; one element of a repeated field.
      index: The element's index, None for a singular field.
    """

    path: str
    parent: Message
    field: FieldDescriptor
    value: Any
    index: int | None = None

    @property
    def rule(self) -> rules_pb2.Rule:
        return rule_of(self.field)

    def replace(self, value: Any) -> None:
        """Writes another scalar in place."""
        if self.index is None:
            setattr(self.parent, self.field.name, value)
        else:
            getattr(self.parent, self.field.name)[self.index] = value


@functools.cache  # asked for each field of each message, and protobuf copies the options each time
def rule_of(field: FieldDescriptor) -> rules_pb2.Rule:
    """The rule in the contract; an empty one where there is none."""
    return field.GetOptions().Extensions[rules_pb2.rule]


def real_oneofs(message: Message) -> tuple[OneofDescriptor, ...]:
    """Oneofs as written; `optional` fields are oneofs of one inside protobuf."""
    return _real_oneofs(message.DESCRIPTOR)


@functools.cache
def _real_oneofs(descriptor: Descriptor) -> tuple[OneofDescriptor, ...]:
    return tuple(oneof for oneof in descriptor.oneofs if not oneof.name.startswith("_"))


@functools.cache
def is_ours(field: FieldDescriptor) -> bool:
    """Whether the field holds a message of the contract, rather than a well-known type or a scalar."""
    return bool(field.message_type) and field.message_type.file.package == "finecut.v1" and not is_map(field)


def visit(message: Message, path: str = "") -> list[Visit]:
    """Every field that is set, outermost first. A message under an unavailable field is not entered."""
    found: list[Visit] = []
    _collect(message, path, found)
    return found


def _collect(message: Message, path: str, found: list[Visit]) -> None:
    """A list rather than a generator: a job is walked many times, and each level of `yield from` costs."""
    for field, value in message.ListFields():
        where = join(path, field.name)
        is_list, is_entered = _shape(field)
        if not is_list:
            found.append(Visit(where, message, field, value))
            if is_entered:
                _collect(value, where, found)
            continue
        for index, item in enumerate(value):
            found.append(Visit(f"{where}[{index}]", message, field, item, index))
            if is_entered:
                _collect(item, f"{where}[{index}]", found)


@functools.cache
def _shape(field: FieldDescriptor) -> tuple[bool, bool]:
    """Whether a field is a list, and whether `visit` enters what it holds."""
    return field.is_repeated and not is_map(field), is_ours(field) and not rule_of(field).unavailable


def messages(message: Message, path: str = "") -> Iterator[tuple[str, Message]]:
    """The message and every message of the contract below it, as `visit` walks them."""
    yield path, message
    for found in visit(message, path):
        if is_ours(found.field) and not found.rule.unavailable:
            yield found.path, found.value
