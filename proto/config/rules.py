"""Checks a message against the rules that its fields carry."""

import functools
import math
import re
from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from finecut.proto import rules_pb2
from finecut.proto.config.build import enum_names, join
from finecut.proto.config.defaults import is_default
from finecut.proto.config.errors import Problem
from finecut.proto.config.walk import Visit, is_entered, is_ours, real_oneofs, rule_of, visit


def check(message: Message, path: str = "") -> list[Problem]:
    """Every broken rule, in field order."""
    found = visit(message, path)
    problems = list(_incomplete(path, message))
    for each in found:
        if is_entered(each.field):
            problems += _incomplete(each.path, each.value)
    for each in found:
        if _has_rules(each.field):
            problems += _check_field(each)
    return problems


def _incomplete(path: str, message: Message) -> Iterator[Problem]:
    """Required parts that are missing."""
    oneofs, fields = _required(message.DESCRIPTOR)
    for oneof in oneofs:
        if not message.WhichOneof(oneof.name):
            yield Problem(path, f"set one of: {', '.join(field.name for field in oneof.fields)}")
    for field in fields:
        is_set = message.HasField(field.name) if field.has_presence else bool(getattr(message, field.name))
        if not is_set:
            yield Problem(join(path, field.name), "is required and not set")
        elif field.is_repeated and not field.message_type and not all(getattr(message, field.name)):
            yield Problem(join(path, field.name), "holds an empty value; remove it or fill it in")


@functools.cache
def _required(descriptor: Descriptor) -> tuple[list[OneofDescriptor], list[FieldDescriptor]]:
    oneofs = [oneof for oneof in real_oneofs(descriptor) if oneof.GetOptions().Extensions[rules_pb2.required_oneof]]
    return oneofs, [field for field in descriptor.fields if rule_of(field).required]


@functools.cache
def _has_rules(field: FieldDescriptor) -> bool:
    """Whether some value of the field would be a problem: most strings, switches and messages can hold anything."""
    rule = rule_of(field)
    if rule.unavailable or field.enum_type:
        return True
    if is_ours(field) or field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return False
    return field.cpp_type != FieldDescriptor.CPPTYPE_STRING or bool(rule.pattern)


def _check_field(found: Visit) -> list[Problem]:
    rule = found.rule
    if rule.unavailable:
        return [] if is_default(found.field, found.value) else [Problem(found.path, rule.unavailable)]
    if found.field.enum_type:
        known = found.field.enum_type.values_by_number.get(found.value)
        if known is None or not found.value:  # only a message that was sent can hold these; no file can say them
            names = ", ".join(enum_names(found.field))
            return [Problem(found.path, f"{found.value} is no {found.field.enum_type.name}; use one of: {names}")]
        sentence = known.GetOptions().Extensions[rules_pb2.unavailable_value]
        return [Problem(found.path, sentence)] if sentence else []
    message = _not_a_value(found.value) or _out_of_range(found.value, rule) or _mismatch(found.value, rule)
    return [Problem(found.path, message)] if message else []


def _not_a_value(value: object) -> str | None:
    """What a message can hold and a file cannot: numbers that are none, durations beyond any calendar."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if isinstance(value, Duration):
        try:
            value.ToJsonString()
        except ValueError:
            return f"{value.seconds} s and {value.nanos} ns is no duration; nanos must be below a second, signs equal"
    return None


def _out_of_range(value: object, rule: rules_pb2.Rule) -> str | None:
    if isinstance(value, Duration):
        number: float = value.seconds + value.nanos / 1e9
        shown = f"{number:g} s"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number, shown = value, f"{value:.15g}" if isinstance(value, float) else str(value)
    else:
        return None
    broken = (
        (rule.HasField("minimum") and number < rule.minimum)
        or (rule.HasField("maximum") and number > rule.maximum)
        or (rule.HasField("greater_than") and number <= rule.greater_than)
        or (rule.HasField("less_than") and number >= rule.less_than)
    )
    return f"{shown} is out of range; it must be {_range_in_words(rule)}" if broken else None


def _range_in_words(rule: rules_pb2.Rule) -> str:
    words = []
    if rule.HasField("minimum"):
        words.append(f"at least {rule.minimum:.15g}")
    if rule.HasField("greater_than"):
        words.append(f"greater than {rule.greater_than:.15g}")
    if rule.HasField("maximum"):
        words.append(f"at most {rule.maximum:.15g}")
    if rule.HasField("less_than"):
        words.append(f"less than {rule.less_than:.15g}")
    return " and ".join(words)


def _mismatch(value: object, rule: rules_pb2.Rule) -> str | None:
    if rule.pattern and isinstance(value, str) and not re.fullmatch(rule.pattern, value):
        return f'"{value}" does not match the pattern {rule.pattern}'
    return None
