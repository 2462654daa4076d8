"""`--set PATH=VALUE`: changes one field of a loaded job before it is merged and checked."""

import re
from collections.abc import Iterable

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from finecut.proto import job_pb2
from finecut.proto.config import build, yaml_reader
from finecut.proto.config.errors import ConfigError, Problem, suggestion
from finecut.proto.config.walk import is_ours

_PART = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:\[([^\]]+)\])?")


class _PathError(Exception):
    """The path leads nowhere; the text says why."""


def apply(job: job_pb2.JobConfig | job_pb2.DataManifest, overrides: Iterable[str]) -> list[Problem]:
    """Applies each "PATH=VALUE" in order.

    A path names fields with dots. An element of a repeated field is chosen by its index or its name:
    `stages[1].sft.training.max_steps`, `stages[sft].sft...` and `stages.sft.sft...` are the same.
    The value is written as in YAML: `3`, `BF16`, `[q_proj, v_proj]`, `{rank: 8}`.
    """
    return [problem for text in overrides for problem in _apply_one(job, text)]


def _apply_one(job: job_pb2.JobConfig | job_pb2.DataManifest, text: str) -> list[Problem]:
    path, equals, value = text.partition("=")
    if not equals:
        return [Problem("--set", f'"{text}" has no "="; write PATH=VALUE')]
    try:
        message, field = _find(job, path.strip())
        node = yaml_reader.read(value, "--set")
    except _PathError as missing:
        return [Problem(f"--set {path}", str(missing))]
    except ConfigError as error:
        return [Problem(f"--set {path}", problem.message) for problem in error.problems]
    message.ClearField(field.name)
    if problem := _other_member(message, field):
        return [Problem(f"--set {path}", problem)]
    problems = build.set_field(message, field, node, path)
    return [Problem(f"--set {problem.path}", problem.message) for problem in problems]


def _find(message: Message, path: str) -> tuple[Message, FieldDescriptor]:
    """The message that holds the last field of a path, and that field."""
    parts = path.split(".")
    while parts:
        match = _PART.fullmatch(parts.pop(0))
        if not match:
            raise _PathError(f'"{path}" is not a field path; write it like stages.sft.sft.training.max_steps')
        name, chosen = match.groups()
        field = message.DESCRIPTOR.fields_by_name.get(name)
        if field is None:
            hint = suggestion(name, [f.name for f in message.DESCRIPTOR.fields])
            raise _PathError(f"{message.DESCRIPTOR.name} has no field {name}; {hint}")
        if not parts and chosen is None:
            return message, field
        if field.is_repeated:
            if chosen is None and parts:
                chosen = parts.pop(0)
            if not parts or not is_ours(field):
                raise _PathError(f"{name} is a list; set it as a whole, or a field of one element")
            message = _element(getattr(message, name), name, str(chosen))
        elif is_ours(field) and chosen is None:
            message = _child(message, field)
        else:
            raise _PathError(f"{name} is a single value; nothing is below it")
    raise AssertionError(path)


def _child(message: Message, field: FieldDescriptor) -> Message:
    if problem := _other_member(message, field):
        raise _PathError(problem)
    child: Message = getattr(message, field.name)
    child.SetInParent()
    return child


def _other_member(message: Message, field: FieldDescriptor) -> str | None:
    """`length` may be switched by an override; what a stage does may not."""
    oneof = field.containing_oneof
    other = message.WhichOneof(oneof.name) if oneof and len(oneof.fields) > 1 else None
    if other in (None, field.name) or not field.message_type:
        return None
    return f"{other} is set, not {field.name}; use {other}"


def _element(items: list[Message], name: str, chosen: str) -> Message:
    if chosen.isdigit() and int(chosen) < len(items):
        return items[int(chosen)]
    for item in items:
        if getattr(item, "name", None) == chosen:
            return item
    known = [getattr(item, "name", "") or str(index) for index, item in enumerate(items)]
    raise _PathError(f'{name} has no element "{chosen}"; {suggestion(chosen, known)}')
