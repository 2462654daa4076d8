"""Where the checks find what they check."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# The repository as the test sees it: links to its files, with generated ones beside them.
ROOT = Path(__file__).parents[2]
PACKAGES = ("proto", "dataprep", "trainer", "launcher", "tools", "third_party", "tests", "examples")


def python_files() -> list[str]:
    """Hand-written Python files, relative to ROOT."""
    return sorted(
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "_pb2" not in path.name
    )


def run(command: Sequence[str], folder: Path = ROOT) -> str:
    """What a program of the environment says; empty when it finds nothing. Its exit status must be 0 then."""
    program = Path(sys.executable).with_name(command[0])
    answer = subprocess.run(
        [str(program), *command[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "MYPYPATH": str(ROOT.parent)},
    )
    return "" if answer.returncode == 0 else f"\n{answer.stdout}{answer.stderr}"
