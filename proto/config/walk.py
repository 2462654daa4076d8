"""Walking a message with the rules that its fields carry."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

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


@functools.cache
def real_oneofs(descriptor: Descriptor) -> tuple[OneofDescriptor, ...]:
    """Oneofs as written; `optional` fields are oneofs of one inside protobuf."""
    return tuple(oneof for oneof in descriptor.oneofs if not oneof.name.startswith("_"))


@functools.cache
def is_ours(field: FieldDescriptor) -> bool:
    """Whether the field holds a message of the contract, rather than a well-known type or a scalar."""
    return bool(field.message_type) and field.message_type.file.package == "finecut.v1" and not is_map(field)


def visit(message: Message, path: str = "") -> list[Visit]:
    """Every field that is set, outermost first. A message under an unavailable field is not entered."""
    found: list[Visit] = []
    _collect(message, path, found, _shape)
    return found


def references(message: Message, path: str = "") -> list[Visit]:
    """Those fields of `visit` that name a place or a stage, found without a look at most of the others."""
    found: list[Visit] = []
    _collect(message, path, found, _shape_for_references)
    return found


class _Shape(NamedTuple):
    """How a walk takes a field."""

    is_list: bool
    is_found: bool
    is_entered: bool


def _collect(message: Message, path: str, found: list[Visit], shape: Callable[[FieldDescriptor], _Shape]) -> None:
    """A list rather than a generator: a job is walked many times, and each level of `yield from` costs."""
    for field, value in message.ListFields():
        is_list, is_found, is_entered = shape(field)
        if not (is_found or is_entered):
            continue
        where = join(path, field.name)
        for index, item in enumerate(value) if is_list else ((None, value),):
            at = where if index is None else f"{where}[{index}]"
            if is_found:
                found.append(Visit(at, message, field, item, index))
            if is_entered:
                _collect(item, at, found, shape)


@functools.cache
def _shape(field: FieldDescriptor) -> _Shape:
    return _Shape(field.is_repeated and not is_map(field), True, is_entered(field))


@functools.cache
def _shape_for_references(field: FieldDescriptor) -> _Shape:
    return _shape(field)._replace(
        is_found=_is_reference(field), is_entered=is_entered(field) and _holds_references(field.message_type)
    )


def _is_reference(field: FieldDescriptor) -> bool:
    return bool(rule_of(field).reference) or field.full_name == "finecut.v1.Stage.after"


def _holds_references(descriptor: Descriptor) -> bool:
    seen, ahead = set[str](), [descriptor]
    while ahead:
        here = ahead.pop()
        if any(map(_is_reference, here.fields)):
            return True
        seen.add(here.full_name)
        ahead += [f.message_type for f in here.fields if is_entered(f) and f.message_type.full_name not in seen]
    return False


@functools.cache
def is_entered(field: FieldDescriptor) -> bool:
    """Whether walks go on into what the field holds."""
    return is_ours(field) and not rule_of(field).unavailable
