"""Reads a Dockerfile, and lints it by the rules that matter for an image which is made from a lock."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_KNOWN = {"ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER", "WORKDIR"}
_PIP_FLAGS = ("--no-cache-dir", "--no-deps", "--require-hashes", "--requirement")


@dataclass(frozen=True)
class Step:
    """One instruction: its line, its name, its text with continued lines joined."""

    line: int
    name: str
    text: str

    @property
    def sources(self) -> list[str]:
        """What COPY or ADD take from the context."""
        words = [word for word in shlex.split(self.text) if not word.startswith("--")]
        return words[:-1] if self.name in ("COPY", "ADD") else []

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a RUN, as words."""
        parts = re.split(r"&&|;|\|\|", self.text) if self.name == "RUN" else []
        return [shlex.split(part) for part in parts if part.strip()]


def parse(text: str) -> list[Step]:
    """Steps in order; comments and empty lines are left out."""
    steps, joined, start = [], "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        start = start if joined else number
        joined += stripped.removesuffix("\\") + " "
        if stripped.endswith("\\"):
            continue
        name, _, rest = joined.strip().partition(" ")
        steps.append(Step(start, name.upper(), rest.strip()))
        joined = ""
    return steps


def lint(steps: Sequence[Step]) -> Iterator[str]:
    """Sentences about what is wrong."""
    for step in steps:
        where = f"line {step.line}: {step.name}"
        if step.name not in _KNOWN:
            yield f"{where} is not an instruction that this image needs"
        if step.name == "FROM" and step.text != "${BASE_IMAGE}" and "@sha256:" not in step.text:
            yield f"{where} names an image that can change; pin its digest, or take it as BASE_IMAGE"
        if step.name in ("COPY", "ADD") and any(source.startswith(("/", "..", "http")) for source in step.sources):
            yield f"{where} takes something from outside the context"
        for command in step.commands:
            yield from (f"{where} {problem}" for problem in _lint_command(command))
    users = [step.text for step in steps if step.name == "USER"]
    if not users or users[-1] in ("root", "0"):
        yield "the image runs as root; end with another USER"


def _lint_command(command: Sequence[str]) -> Iterator[str]:
    program = command[0].rpartition("/")[2]
    if program in ("curl", "wget", "git"):
        yield f"fetches with {program} what no lock pins"
    if program in ("apt", "apt-get", "conda", "dnf", "yum"):
        yield f"installs with {program} what no lock pins"
    if program == "sudo":
        yield "uses sudo, which a build does not need"
    is_pip = "pip" in program or list(command[1:3]) == ["-m", "pip"]
    if is_pip and (missing := [flag for flag in _PIP_FLAGS if flag not in command]):
        yield f"installs packages without {', '.join(missing)}"
