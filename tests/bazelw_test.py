"""bazelw on machines with and without Bazel, played by small programs on a PATH of their own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

BAZELW = Path(__file__).parents[1] / "bazelw"
FAKE_BAZEL = '#!/bin/sh\necho "bazel $*"\n'
# Installs nothing but says what it was asked for; `install` brings Bazel.
FAKE_APT_GET = """#!/bin/sh
echo "apt-get $*" >> "$LOG"
case "$*" in *install*bazel-bootstrap*) printf '%s' "$FAKE_BAZEL" > "$BIN/bazel"; chmod +x "$BIN/bazel";; esac
case "$*" in *install*chromium* | *install*postgresql*) exit "${INSTALL_STATUS:-0}";; esac
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A PATH with a shell, a whole Python and nothing that is not added."""
    for name in ("bash", "chmod", "env", "sh"):
        (tmp_path / name).symlink_to(shutil.which(name) or pytest.fail(f"{name} is not here"))
    add(tmp_path, "id", "#!/bin/sh\necho 0\n")
    add(tmp_path, "python3", "#!/bin/sh\nexit 0\n")
    return tmp_path


def add(machine: Path, name: str, script: str) -> None:
    (machine / name).write_text(script)
    (machine / name).chmod(0o755)


def run(machine: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(machine), "BIN": str(machine), "LOG": str(machine / "log"), "FAKE_BAZEL": FAKE_BAZEL}
    environment |= variables
    return subprocess.run(
        [str(machine / "bash"), str(BAZELW), *arguments], env=environment, capture_output=True, text=True
    )


def test_takes_bazel_from_the_path(machine: Path) -> None:
    add(machine, "bazel", FAKE_BAZEL)
    add(machine, "chromium", "#!/bin/sh\n")
    add(machine, "pg_ctlcluster", "#!/bin/sh\n")
    add(machine, "apt-get", FAKE_APT_GET)
    assert run(machine, "test", "//a b").stdout == "bazel test //a b\n"
    assert not (machine / "log").exists()


def test_installs_debians_bazel_as_root_without_sudo(machine: Path) -> None:
    add(machine, "apt-get", FAKE_APT_GET)
    answer = run(machine, "version")
    assert answer.stdout == "bazel version\n", answer.stderr
    assert "install" in (machine / "log").read_text()
    assert "bazel-bootstrap" in (machine / "log").read_text()


def test_installs_the_venv_module_that_debians_python_lacks(machine: Path) -> None:
    add(machine, "bazel", FAKE_BAZEL)
    add(machine, "apt-get", FAKE_APT_GET)
    add(machine, "python3", "#!/bin/sh\nexit 1\n")
    assert run(machine, "version").stdout == "bazel version\n"
    assert "python3-venv" in (machine / "log").read_text()


def test_a_user_installs_with_sudo(machine: Path) -> None:
    add(machine, "id", "#!/bin/sh\necho 1000\n")
    add(machine, "apt-get", FAKE_APT_GET)
    add(machine, "sudo", '#!/bin/sh\necho "sudo" >> "$LOG"\nexec "$@"\n')
    assert run(machine, "version").stdout == "bazel version\n"
    assert (machine / "log").read_text().startswith("sudo\napt-get update")


@pytest.mark.parametrize("user", ["0", "1000"])
def test_says_what_to_do_where_it_cannot_install(machine: Path, user: str) -> None:
    add(machine, "id", f"#!/bin/sh\necho {user}\n")
    if user != "0":
        add(machine, "apt-get", FAKE_APT_GET)  # there, but without sudo
    answer = run(machine, "version")
    assert answer.returncode == 1
    assert "apt-get install bazel-bootstrap" in answer.stderr
    assert not (machine / "log").exists()


@pytest.mark.parametrize(
    "arguments", [("test", "//..."), ("--nohome_rc", "coverage", "//...")], ids=["test", "coverage"]
)
def test_installs_chromium_and_postgresql_for_tests(machine: Path, arguments: tuple[str, ...]) -> None:
    add(machine, "bazel", FAKE_BAZEL)
    add(machine, "apt-get", FAKE_APT_GET)
    assert run(machine, *arguments).stdout == f"bazel {' '.join(arguments)}\n"
    assert "install -y -qq chromium" in (machine / "log").read_text()
    assert "install -y -qq postgresql" in (machine / "log").read_text()


@pytest.mark.parametrize("arguments", [("build", "test"), ("run", "//tools:test"), ()])
def test_what_tests_need_is_for_tests_only(machine: Path, arguments: tuple[str, ...]) -> None:
    add(machine, "bazel", FAKE_BAZEL)
    add(machine, "apt-get", FAKE_APT_GET)
    assert run(machine, *arguments).returncode == 0
    assert not (machine / "log").exists()


def test_goes_on_without_what_cannot_be_installed(machine: Path) -> None:
    add(machine, "bazel", FAKE_BAZEL)
    assert run(machine, "test", "//...").stdout == "bazel test //...\n"
    add(machine, "apt-get", FAKE_APT_GET)
    answer = run(machine, "test", "//...", INSTALL_STATUS="100")
    assert answer.stdout == "bazel test //...\n"
    assert "going on without Chromium" in answer.stderr
    assert "going on without PostgreSQL" in answer.stderr


def test_script_can_be_executed() -> None:
    assert os.access(BAZELW, os.X_OK)
