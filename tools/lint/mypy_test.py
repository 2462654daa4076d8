"""Python types."""

import os
from pathlib import Path

from finecut.tools.lint import sources


def test_mypy_finds_nothing(tmp_path: Path) -> None:
    files = [f"finecut/{path}" for path in sources.python_files() if "_test" not in path and "third_party" not in path]
    settings = ["--config-file", "finecut/pyproject.toml", "--cache-dir", os.devnull, "--no-error-summary"]
    assert not sources.run(["mypy", *settings, *files], folder=sources.ROOT.parent)
