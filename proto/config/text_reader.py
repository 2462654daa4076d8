"""Reads protobuf text format into a tree.

protobuf's own parser stops at the first unknown field; a user wants all errors at once, with their lines. Syntax:
https://protobuf.dev/reference/protobuf/textformat-spec/. Extensions and Any are not part of a job file.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from google.protobuf import text_encoding

from finecut.proto.config.errors import ConfigError, Problem
from finecut.proto.config.tree import Entry, Mapping, Node, Scalar, Sequence

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|\#[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<word>[-+]?[A-Za-z0-9_.][A-Za-z0-9_.+-]*)
      | (?P<mark>[{}<>\[\]:,;])
      | (?P<bad>.)""",
    re.VERBOSE,
)
_CLOSING = {"{": "}", "<": ">"}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    line: int


def read(text: str, name: str) -> Mapping:
    """Parses `text`; `name` stands in places.

    Raises:
      ConfigError: The syntax is wrong; says where and what was expected.
    """
    return _Reader(text, name).message(closing=None)


class _Reader:
    """Recursive descent over tokens."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._last_line = text.count("\n") + 1
        self._tokens: Iterator[_Token] = self._scan(text)
        self._next = next(self._tokens, None)

    def message(self, closing: str | None) -> Mapping:
        entries: list[Entry] = []
        place = self._place()
        while not self._at(closing):
            if self._next is None:
                self._fail(f"expected {closing} before the end of the file")
            entries.append(self._entry())
            if self._next and self._next.text in (",", ";"):
                self._take()
        if closing:
            self._take()
        return Mapping(tuple(entries), place)

    def _entry(self) -> Entry:
        place = self._place()
        token = self._take()
        if token.kind != "word":
            self._fail(f"expected a field name, found {token.text}", token)
        if self._at(":"):
            self._take()
        elif self._next is None or self._next.text not in _CLOSING:
            self._fail(f"expected : or {{ after {token.text}")
        return Entry(token.text, self._value(), place)

    def _value(self) -> Node:
        place = self._place()
        token = self._take()
        if token.text in _CLOSING and token.kind == "mark":
            return self.message(_CLOSING[token.text])
        if token.text == "[" and token.kind == "mark":
            return self._list(place)
        if token.kind == "string":
            return Scalar(self._string(token), True, place)
        if token.kind == "word":
            return Scalar(token.text, False, place)
        self._fail(f"expected a value, found {token.text}", token)

    def _list(self, place: str) -> Sequence:
        items: list[Node] = []
        while not self._at("]"):
            items.append(self._value())
            if self._at(","):
                self._take()
            elif not self._at("]"):
                self._fail("expected , or ] in a list")
        self._take()
        return Sequence(tuple(items), place)

    def _string(self, token: _Token) -> str:
        """Adjacent literals are one string, as in C."""
        parts = [token.text]
        while self._next and self._next.kind == "string":
            parts.append(self._take().text)
        try:
            return b"".join(text_encoding.CUnescape(part[1:-1]) for part in parts).decode("utf-8")
        except (ValueError, UnicodeDecodeError):
            self._fail(f"{token.text} is not a valid UTF-8 string", token)

    def _scan(self, text: str) -> Iterator[_Token]:
        line = 1
        for match in _TOKEN.finditer(text):
            kind = match.lastgroup
            if kind == "bad":
                self._fail(f"unexpected character {match.group()}", _Token("bad", match.group(), line))
            if kind != "space":
                yield _Token(str(kind), match.group(), line)
            line += match.group().count("\n")

    def _take(self) -> _Token:
        token = self._next
        if token is None:
            self._fail("the file ends too early")
        self._next = next(self._tokens, None)
        return token

    def _at(self, mark: str | None) -> bool:
        if self._next is None:
            return mark is None
        return self._next.kind == "mark" and self._next.text == mark

    def _place(self) -> str:
        return f"{self._name}:{self._next.line if self._next else self._last_line}"

    def _fail(self, message: str, token: _Token | None = None) -> NoReturn:
        place = f"{self._name}:{token.line}" if token else self._place()
        raise ConfigError([Problem("", message, place)])
