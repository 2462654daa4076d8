"""Writes docs/job_file.md, the reference of the job file, from the comments and rules of the protos.

Usage: bazel run //tools/docs:reference
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from grpc_tools import protoc

from finecut.proto import job_pb2, rules_pb2
from finecut.proto.config.build import is_map
from finecut.proto.config.walk import rule_of

PAGE = Path("docs/job_file.md")
_ROOT = Path(__file__).parents[2]  # of the sources, in the workspace and in runfiles
_PACKAGE = "finecut.v1."
_SCALARS = {
    FieldDescriptor.CPPTYPE_STRING: "text",
    FieldDescriptor.CPPTYPE_BOOL: "bool",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
    FieldDescriptor.CPPTYPE_FLOAT: "number",
}
_HEADER = """\
# The job file

Written by `bazel run //tools/docs:reference` from the comments in [proto/](../proto); a test compares.

A job file is a `JobConfig` in protobuf's text format, or the same in YAML: names, nesting and rules are equal.
Enum values are written by name, durations as `{ seconds: 30 }`. `"@stage"` names another stage's artifact.
"""


def main(arguments: list[str]) -> int:
    """Replaces the page in the workspace."""
    workspace = os.environ.get("BUILD_WORKSPACE_DIRECTORY")
    if len(arguments) > 1 or not workspace:
        print(__doc__, file=sys.stderr)
        return 2
    (Path(workspace) / PAGE).write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


def page() -> str:
    """The whole page."""
    comments = _comments()
    order: dict[str, Descriptor | EnumDescriptor] = {}
    _collect(job_pb2.JobConfig.DESCRIPTOR, order)
    _collect(job_pb2.DataManifest.DESCRIPTOR, order)
    parts = [_HEADER]
    for kind in order.values():
        parts += _message(kind, comments) if isinstance(kind, Descriptor) else _enum(kind, comments)
    return "\n".join(parts)


def _collect(message: Descriptor, order: dict[str, Descriptor | EnumDescriptor]) -> None:
    """Messages and enums that can be reached, each after the one that first names it."""
    if message.full_name in order:
        return
    order[message.full_name] = message
    for field in message.fields:
        if is_map(field):
            continue
        if field.enum_type:
            order.setdefault(field.enum_type.full_name, field.enum_type)
        elif field.message_type and field.message_type.full_name.startswith(_PACKAGE):
            _collect(field.message_type, order)


def _message(message: Descriptor, comments: dict[str, str]) -> Iterator[str]:
    yield f"\n## {_name(message)}\n"
    yield comments[message.full_name] + "\n"
    if not message.fields:
        return
    yield "| field | type | meaning |"
    yield "|---|---|---|"
    for field in message.fields:
        oneof, comment = field.containing_oneof, comments[field.full_name]
        meaning = _cell(comment)
        if oneof is not None and not oneof.name.startswith("_"):
            meaning = f"*One of `{oneof.name}`.* {meaning}"
        for sentence in _rules(field, comment):
            meaning += f" *{sentence}*"
        yield f"| `{field.name}` | {_type(field)} | {meaning} |"


def _rules(field: FieldDescriptor, comment: str) -> Iterator[str]:
    """What the field's rule says and its comment does not."""
    rule = rule_of(field)
    if rule.unavailable:
        yield f"Not yet: {_cell(rule.unavailable)}."
    if rule.default and "Unset:" not in comment:
        yield f"Default: `{rule.default}`."
    if rule.safe_to_change:
        yield "May differ at a resume."


def _enum(enum: EnumDescriptor, comments: dict[str, str]) -> Iterator[str]:
    yield f"\n## {_name(enum)}\n"
    yield comments[enum.full_name] + "\n"
    yield "| value | meaning |"
    yield "|---|---|"
    for value in enum.values:
        if value.number == 0:
            continue
        meaning = _cell(comments[f"{enum.full_name}.{value.name}"])
        if sentence := value.GetOptions().Extensions[rules_pb2.unavailable_value]:
            meaning += f" *Not yet: {_cell(sentence)}.*"
        yield f"| `{value.name}` | {meaning} |"


def _name(kind: Descriptor | EnumDescriptor) -> str:
    return str(kind.full_name).removeprefix(_PACKAGE)


def _type(field: FieldDescriptor) -> str:
    if is_map(field):
        return "map of text"
    kind = field.enum_type or field.message_type
    if kind is None:
        text = _SCALARS.get(field.cpp_type, "integer")
    elif kind.full_name.startswith(_PACKAGE):
        anchor = _name(kind).lower().replace(".", "")
        text = f"[{_name(kind)}](#{anchor})"
    else:
        text = str(kind.name)
    return f"{text}, repeated" if field.is_repeated else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _comments() -> dict[str, str]:
    """The comment before each message, field, enum and value, by full name, as one line of text.

    An enum value stands under its enum: "finecut.v1.Sft.Kind.VALUE".
    """
    found: dict[str, str] = {}
    for file in _files().file:
        at = {tuple(each.path): each.leading_comments for each in file.source_code_info.location}
        for index, message in enumerate(file.message_type):
            _walk(message, (4, index), file.package, at, found)
        for index, enum in enumerate(file.enum_type):
            _walk_enum(enum, (5, index), file.package, at, found)
    return found


def _walk(
    message: descriptor_pb2.DescriptorProto,
    path: tuple[int, ...],
    parent: str,
    at: dict[tuple[int, ...], str],
    found: dict[str, str],
) -> None:
    name = f"{parent}.{message.name}"
    found[name] = _one_line(at.get(path, ""))
    for index, field in enumerate(message.field):
        found[f"{name}.{field.name}"] = _one_line(at.get((*path, 2, index), ""))
    for index, nested in enumerate(message.nested_type):
        _walk(nested, (*path, 3, index), name, at, found)
    for index, enum in enumerate(message.enum_type):
        _walk_enum(enum, (*path, 4, index), name, at, found)


def _walk_enum(
    enum: descriptor_pb2.EnumDescriptorProto,
    path: tuple[int, ...],
    parent: str,
    at: dict[tuple[int, ...], str],
    found: dict[str, str],
) -> None:
    name = f"{parent}.{enum.name}"
    found[name] = _one_line(at.get(path, ""))
    for index, value in enumerate(enum.value):
        found[f"{name}.{value.name}"] = _one_line(at.get((*path, 2, index), ""))


def _one_line(comment: str) -> str:
    return " ".join(comment.split())


def _files() -> descriptor_pb2.FileDescriptorSet:
    """The protos with their comments, which generated code leaves out."""
    protos = sorted((_ROOT / "proto").glob("*.proto"))
    well_known = resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "protos"
        command = ["protoc", f"-Ifinecut/proto={_ROOT / 'proto'}", f"-I{well_known}", "--include_source_info"]
        status = protoc.main(
            [*command, f"--descriptor_set_out={output}", *(f"finecut/proto/{path.name}" for path in protos)]
        )
        assert status == 0, "protoc fails on the protos"
        return descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())


if __name__ == "__main__":
    sys.exit(main(sys.argv))
