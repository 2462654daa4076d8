"""Reads YAML into a tree, with lines. The schema is the proto's: field names as keys."""

import yaml

from finecut.proto.config.errors import ConfigError, Problem
from finecut.proto.config.tree import Entry, Mapping, Node, Scalar, Sequence


def read(text: str, name: str) -> Node:
    """Parses one YAML document; `name` stands in places.

    Raises:
      ConfigError: The syntax is wrong, or an alias or a non-text key is used.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError([Problem("", f"not valid YAML: {error.problem}", f"{name}{line}")]) from None
    return _convert(node, name) if node is not None else Mapping((), f"{name}:1")


def _convert(node: yaml.Node, name: str) -> Node:
    place = f"{name}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.ScalarNode):
        return Scalar(node.value, node.style in ("'", '"', "|", ">"), place)
    if isinstance(node, yaml.SequenceNode):
        return Sequence(tuple(_convert(item, name) for item in node.value), place)
    assert isinstance(node, yaml.MappingNode)
    entries = []
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError([Problem("", "a key must be a field name", place)])
        entries.append(Entry(key.value, _convert(value, name), f"{name}:{key.start_mark.line + 1}"))
    return Mapping(tuple(entries), place)
