"""The pre-commit configuration is valid, and its hooks are tests that exist."""

import re

import yaml

from finecut.tools.lint import sources


def test_configuration_is_valid() -> None:
    assert not sources.run(["pre-commit", "validate-config", ".pre-commit-config.yaml"])


def test_hooks_are_the_checks_of_this_folder() -> None:
    config = yaml.safe_load((sources.ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    tests = [
        match.group(1) for entry in entries if (match := re.fullmatch(r"\./bazelw test //tools/lint:(\w+)", entry))
    ]
    assert len(tests) == len(entries)
    for test in tests:
        assert (sources.ROOT / "tools" / "lint" / f"{test}.py").is_file()
