"""Debian's PostgreSQL, started for a test."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def programs() -> Path | None:
    """Folder of the newest installed PostgreSQL's programs; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parents[1].name))
    return found[-1].parent if found else None


@contextmanager
def running_postgresql(programs: Path) -> Iterator[str]:
    """The URL of a server that lives as long as the block. It listens on a socket in a private folder only."""
    folder = Path(tempfile.mkdtemp(prefix="finecut-pg-", dir="/tmp"))  # a socket's path must be short
    run_as = _unprivileged(folder)
    try:
        _call([programs / "initdb", "-D", folder / "data", "-U", "finecut", "--no-sync", "-A", "trust"], run_as)
        options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
        start = [programs / "pg_ctl", "-D", folder / "data", "-w", "-t", "120", "-l", folder / "log", "-o", options]
        _call([*start, "start"], run_as)
        try:
            yield f"postgresql://finecut@/postgres?host={folder}"
        finally:
            _call([programs / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop"], run_as)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _RunAs:
    """How a program is started that refuses to run as root."""

    prefix: tuple[str, ...] = ()
    user: int | None = None


def _unprivileged(folder: Path) -> _RunAs:
    """As root: under the name of the user that Debian made for PostgreSQL, in a user namespace where one may be made
    (Bazel's sandbox knows no other users), else as that user, who then owns the folder."""
    if os.geteuid() != 0:
        return _RunAs()
    user = pwd.getpwnam("postgres")
    prefix = ("unshare", "--user", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}", "--")
    if shutil.which("unshare") and not subprocess.run([*prefix, "true"], capture_output=True).returncode:
        return _RunAs(prefix=prefix)
    os.chown(folder, user.pw_uid, user.pw_gid)
    return _RunAs(user=user.pw_uid)


def _call(command: list[object], run_as: _RunAs) -> None:
    words = [*run_as.prefix, *map(str, command)]
    # Output goes to files: the server inherits it, and a pipe would stay open for as long as it lives.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(words, user=run_as.user, cwd="/", stdout=output, stderr=output, timeout=300)
        output.seek(0)
        assert done.returncode == 0, output.read()
