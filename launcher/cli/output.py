"""Printing results and errors, for people (text) or programs (one JSON document on standard output)."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console

from finecut.proto.config import ConfigError, Problem

_PIPE_WIDTH = 120  # columns of tables that are not printed on a terminal


def terminal(stderr: bool = False) -> Console:
    """A console whose lines stay whole when they are piped, and whose numbers and paths are not coloured."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


class Output:
    """One verb's output. Progress never goes through here, so that JSON stays one document."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = terminal()
        self._errors = terminal(stderr=True)

    def result(self, document: dict[str, Any], show: Callable[[Console], None]) -> None:
        """Prints `document` as JSON, or calls `show` with the terminal."""
        if self.as_json:
            self._print_json(document)
        else:
            show(self.console)

    def note(self, text: str) -> None:
        """Prints what somebody should know, beside the result."""
        self._errors.print(text, markup=False)

    def invalid(self, error: ValueError, hint: str | None = None) -> None:
        """Prints what is wrong with the input, every problem with its field path, and what to do next."""
        problems = error.problems if isinstance(error, ConfigError) else (Problem("", str(error)),)
        if self.as_json:
            self._print_json({"problems": [asdict(problem) for problem in problems]})
            return
        for problem in problems:
            self._print_error(str(problem))
        self._print_hint(hint)

    def failed(self, message: str, log: str | None = None, hint: str | None = None) -> None:
        """Prints why the work stopped, where its details are, and what to do next."""
        if self.as_json:
            self._print_json({"error": message, "log": log, "next": hint})
            return
        self._print_error(message)
        if log:
            self._errors.print(f"details: {log}", markup=False)
        self._print_hint(hint)

    def _print_hint(self, hint: str | None) -> None:
        if hint:
            self._errors.print(hint, markup=False)

    def _print_error(self, text: str) -> None:
        self._errors.print("error: ", style="bold red", end="")
        self._errors.print(text, markup=False)

    def _print_json(self, document: dict[str, Any]) -> None:
        json.dump(document, sys.stdout, indent=2)
        sys.stdout.write("\n")
