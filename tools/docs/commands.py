"""Finds the commands, jobs and links of Markdown pages."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What a command of ours, or of a reader's shell, begins with. Other words in code are names.
PROGRAMS = (
    "bazel",
    "bazelw",
    "buf",
    "curl",
    "docker",
    "git",
    "grpcurl",
    "kill",
    "pip",
    "pre-commit",
    "psql",
    "pytest",
    "python",
    "python3",
    "ssh",
    "tensorboard",
    "torchrun",
)
# Programs of ours as tables name them: `launcher plan --config=FILE` is `bazel run //launcher -- plan --config=FILE`.
SHORT = ("launcher", "trainer", "dataprep", "tools:dashboard", "tools:compare")
_FENCE = re.compile(r"^(\s*)(```+|~~~+)\s*(\S*).*$")
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=\S*")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Found:
    """A piece of a page, and where it begins."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.splitlines()[0] if self.text else ''}"


def commands(page: Path, text: str) -> list[Found]:
    """Every command, in blocks (also indented ones) and in running text; a line's backslash joins it with the next."""
    pieces = [found for found in blocks(page, text, "") + blocks(page, text, "sh")] + _inline(page, text)
    found = []
    for piece in pieces:
        joined = re.sub(r"\\\n\s*", " ", piece.text)
        for line in joined.splitlines():
            line = line.strip().removeprefix("$ ")
            if is_command(line):
                found.append(Found(page, piece.line, line))
    return found


def is_command(line: str) -> bool:
    """Whether a line of code starts a program, settings of its environment aside, and says with what."""
    words = line.split()
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words.pop(0)
    # One word is a mention ("`bazelw` installs what is missing"), and so is `bazel run` alone.
    return (
        len(words) > 1
        and words[1:] != ["run"]
        and words[0].rpartition("/")[2] in (*PROGRAMS, *SHORT)
        and "..." not in words
    )


def arguments(command: str) -> list[str]:
    """A command's words, without comments and settings of its environment."""
    words = shlex.split(command, comments=True)
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words.pop(0)
    return words


def blocks(page: Path, text: str, language: str) -> list[Found]:
    """Fenced blocks of a language; "" also gives indented ones, whose language nobody knows."""
    return [found for found, of in _blocks(page, text) if of == language]


def links(page: Path, text: str) -> list[Found]:
    """Targets of links to files, without their anchors."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        for target in _LINK.findall(_INLINE.sub("", line)):
            if not re.match(r"[a-z]+:|#", target):
                found.append(Found(page, number, target.partition("#")[0]))
    return found


def _blocks(page: Path, text: str) -> Iterator[tuple[Found, str]]:
    fence, language, start, lines = "", "", 0, list[str]()
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        match = _FENCE.match(line)
        if fence:
            if match and match[2] == fence and not match[3]:
                yield Found(page, start, "\n".join(lines)), language
                fence, lines = "", []
            else:
                lines.append(line)
        elif match:
            if lines:
                yield Found(page, start, "\n".join(lines)), ""
            fence, language, start, lines = match[2], match[3], number + 1, []
        elif line.startswith("    "):
            start, lines = (start, [*lines, line]) if lines else (number, [line])
        elif lines:
            yield Found(page, start, "\n".join(lines)), ""
            lines = []


def _inline(page: Path, text: str) -> list[Found]:
    """Code within text; a code may run over a line's end."""
    blanked = _without_blocks(text)
    return [
        Found(page, blanked.count("\n", 0, match.start()) + 1, " ".join(match[1].split()))
        for match in _INLINE.finditer(blanked)
    ]


def _without_blocks(text: str) -> str:
    """The text with the lines of fenced blocks left empty, so that numbers of lines stay."""
    kept, fence = [], ""
    for line in text.splitlines():
        match = _FENCE.match(line)
        if match and not fence:
            fence = match[2]
            kept.append("")
        elif fence:
            kept.append("")
            if match and match[2] == fence and not match[3]:
                fence = ""
        else:
            kept.append(line)
    return "\n".join(kept)
