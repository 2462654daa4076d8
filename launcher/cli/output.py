"""Printing results and errors, for people (text) or programs (one JSON document on standard output)."""

import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from finecut.proto.config import ConfigError


class Output:
    """One verb's output. Progress never goes through here, so that JSON stays one document."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        # highlight=False: rich would colour every number of a path; soft_wrap: paths stay in one piece when piped.
        self.console = Console(highlight=False, soft_wrap=True)
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def result(self, document: dict[str, Any], show: Callable[[Console], None]) -> None:
        """Prints `document` as JSON, or calls `show` with the terminal."""
        if self.as_json:
            json.dump(document, sys.stdout, indent=2)
            sys.stdout.write("\n")
        else:
            show(self.console)

    def invalid(self, error: ValueError) -> None:
        """Prints what is wrong with the input, every problem with its field path."""
        if isinstance(error, ConfigError):
            problems = [{"path": problem.path, "message": problem.message} for problem in error.problems]
        else:
            problems = [{"path": "", "message": str(error)}]
        if self.as_json:
            self.result({"problems": problems}, lambda console: None)
            return
        for problem in problems:
            text = f"{problem['path']}: {problem['message']}" if problem["path"] else problem["message"]
            self._print_error(text)

    def failed(self, message: str, log: str | None = None, hint: str | None = None) -> None:
        """Prints why the work stopped, where its details are, and what to do next."""
        if self.as_json:
            self.result({"error": message, "log": log, "next": hint}, lambda console: None)
            return
        self._print_error(message)
        if log:
            self._errors.print(f"details: {log}", markup=False)
        if hint:
            self._errors.print(hint, markup=False)

    def _print_error(self, text: str) -> None:
        self._errors.print("error: ", style="bold red", end="")
        self._errors.print(text, markup=False)
