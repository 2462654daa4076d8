"""Reads notes of questions with a good and a poor answer:

    Q: How long does an egg boil?
    A: Seven minutes.
    X: It depends on many things.

Notes are apart by a blank line.
"""

from collections.abc import Callable, Iterator
from typing import Any


def reader(as_pairs: str = "false") -> Callable[[str], Iterator[dict[str, Any]]]:
    """A reader of conversations, or of preference pairs."""

    def read(path: str) -> Iterator[dict[str, Any]]:
        with open(path, encoding="utf-8") as file:
            for note in file.read().split("\n\n"):
                fields = dict(line.split(": ", 1) for line in note.strip().splitlines())
                if as_pairs == "true":
                    yield {"prompt": fields["Q"], "chosen": fields["A"], "rejected": fields["X"]}
                else:
                    messages = [{"role": "user", "content": fields["Q"]}, {"role": "assistant", "content": fields["A"]}]
                    yield {"messages": messages}

    return read
