"""Compares two runs: their configs, curves and final metrics, as tables here and as a page.

Usage: bazel run //tools:compare -- RUN_A RUN_B

A run is a folder, or the name of a run below --storage_root. The page is one file: --output, or
compare-A-B.html where you stand.
"""

import sys
from pathlib import Path

from absl import app, flags
from rich.console import Console
from rich.table import Table

from finecut.launcher import runs
from finecut.proto.config import UserError, places
from finecut.tools.compare.comparison import Comparison, compare, write

_STORAGE_ROOT = flags.DEFINE_string(
    "storage_root", None, "Folder that holds runs given by name. Unset: finecut-runs where you stand."
)
_OUTPUT = flags.DEFINE_string("output", None, "Where the page is written.")


def main(arguments: list[str]) -> int:
    """Finds both runs, compares, prints, writes."""
    try:
        if len(arguments) != 3:
            raise UserError("two runs are needed: compare RUN_A RUN_B, each a folder or a name")
        left, right = (_folder(text) for text in arguments[1:])
        found = compare(left, right)
        show(found, Console(highlight=False, soft_wrap=not sys.stdout.isatty()))
        path = places.user_folder() / (_OUTPUT.value or f"compare-{left.name}-{right.name}.html")
        write(found, path)
        print(f"page: {path}")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --output: {error.filename}: {error.strerror}; choose another place", file=sys.stderr)
        return 2


def show(found: Comparison, console: Console) -> None:
    """Tables for people."""
    _print(console, found, "", [(row.name, row.left, row.right, row.change) for row in found.facts])
    if found.differences:
        _print(console, found, "config", [(each.path, each.left, each.right, "") for each in found.differences])
    else:
        console.print("\nconfig: no field differs")
    for section in found.sections:
        if section.metrics:
            _print(
                console, found, section.name, [(row.name, row.left, row.right, row.change) for row in section.metrics]
            )
    for name, run in found.alone:
        console.print(f"\nstage {name}: only in {run}", markup=False)
    if not found.sections:
        console.print("\nThe two runs have no stage in common.")


def _print(console: Console, found: Comparison, heading: str, rows: list[tuple[str, str, str, str]]) -> None:
    table = Table(heading, found.left, found.right, "", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(table)


def _folder(text: str) -> Path:
    """A run's folder, by path or by name."""
    path = places.user_folder() / Path(text).expanduser()
    if (path / "job.textproto").is_file():
        return path
    return runs.find(runs.storage_root(_STORAGE_ROOT.value), text).root


if __name__ == "__main__":
    app.run(main)
