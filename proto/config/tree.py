"""What text format and YAML have in common: names, values and lines, before any schema is known."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scalar:
    """A word, number or string. `quoted` tells "1" from 1."""

    text: str
    quoted: bool
    place: str


@dataclass(frozen=True)
class Entry:
    """One `name: value`."""

    name: str
    value: "Node"
    place: str


@dataclass(frozen=True)
class Mapping:
    """Entries in order; a name may stand several times (a repeated field in text format)."""

    entries: tuple[Entry, ...]
    place: str


@dataclass(frozen=True)
class Sequence:
    """A list."""

    items: tuple["Node", ...]
    place: str


Node = Scalar | Mapping | Sequence


def describe(node: Node) -> str:
    """A node in words, for errors."""
    if isinstance(node, Scalar):
        return f'the string "{node.text}"' if node.quoted else node.text
    return "a list" if isinstance(node, Sequence) else "a message"
