"""Python style."""

from finecut.tools.lint import sources


def test_ruff_finds_nothing() -> None:
    assert not sources.run(["ruff", "check", "--no-cache", "--config", "pyproject.toml", *sources.python_files()])


def test_files_are_formatted() -> None:
    command = ["ruff", "format", "--check", "--diff", "--no-cache", "--config", "pyproject.toml"]
    assert not sources.run([*command, *sources.python_files()])


def test_sees_the_whole_repository() -> None:
    assert len(sources.python_files()) > 50
