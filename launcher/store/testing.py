"""Debian's PostgreSQL, started for a test."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """Folder of the newest installed PostgreSQL's programs; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parents[1].name))
    return found[-1].parent if found else None


@contextmanager
def running_postgresql(programs: Path) -> Iterator[str]:
    """The URL of a server that lives as long as the block. It listens on a socket in a private folder only."""
    folder = Path(tempfile.mkdtemp(prefix="finecut-pg-", dir="/tmp"))  # a socket's path must be short
    user = _unprivileged(folder)
    try:
        _call([programs / "initdb", "-D", folder / "data", "-U", "finecut", "--no-sync", "-A", "trust"], user)
        options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
        start = [programs / "pg_ctl", "-D", folder / "data", "-w", "-t", "120", "-l", folder / "log", "-o", options]
        _call([*start, "start"], user)
        try:
            yield f"postgresql://finecut@/postgres?host={folder}"
        finally:
            _call([programs / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop"], user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged(folder: Path) -> int | None:
    """PostgreSQL refuses to run as root; the user that Debian made for it then owns the folder."""
    if os.geteuid() != 0:
        return None
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return user.pw_uid


def _call(command: list[object], user: int | None) -> None:
    # Output goes to files: the server inherits it, and a pipe would stay open for as long as it lives.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            [str(word) for word in command], user=user, cwd="/", stdout=output, stderr=output, timeout=180
        )
        output.seek(0)
        assert done.returncode == 0, output.read()
