"""What differs between two configs, in words: semantic, with defaults written out."""

from google.protobuf import text_format
from google.protobuf.message import Message

from finecut.proto.config.build import is_map
from finecut.proto.config.walk import Visit, is_ours, rule_of, visit


def diff(old: Message, new: Message) -> list[str]:
    """One line a field that differs, "path: old -> new". Both must be resolved.

    Fields that are safe to change are left out.
    """
    before, after = flatten(old), flatten(new)
    return [
        f"{path}: {before.get(path, 'unset')} -> {after.get(path, 'unset')}"
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    ]


def flatten(message: Message, with_safe: bool = False) -> dict[str, str]:
    """Leaf values by path, as text.

    Fields that are safe to change are left out unless `with_safe`; a message that is set but empty counts as a leaf.
    """
    safe: list[str] = []
    leaves = {}
    for found in visit(message):
        if any(found.path.startswith(f"{path}.") for path in safe):
            continue
        if rule_of(found.field).safe_to_change and not with_safe:
            safe.append(found.path)
        elif not is_ours(found.field):
            leaves[found.path] = _shown(found)
        elif not found.value.ListFields():
            leaves[found.path] = "{}"
    return leaves


def _shown(found: Visit) -> str:
    if found.field.enum_type:
        return str(found.field.enum_type.values_by_number[found.value].name)
    if is_map(found.field):
        return str(dict(sorted(found.value.items())))
    if found.field.message_type:
        return str(text_format.MessageToString(found.value, as_one_line=True))
    return f'"{found.value}"' if isinstance(found.value, str) else str(found.value)
