"""Hosts of one's own, as loopback addresses on which a user has started agents."""

import contextlib
import datetime
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from finecut.launcher.security.authority import Authority
from finecut.launcher.testing import environment

A_DAY = datetime.timedelta(days=1)


@contextlib.contextmanager
def agents(
    folder: Path, authority: Authority, addresses: Sequence[str]
) -> "Iterator[dict[str, subprocess.Popen[bytes]]]":
    """Agents by address, with certificates of `authority`; their logs are in `folder`."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for address in addresses:
            credentials = folder / address
            authority.mint(address, [address], A_DAY).write(credentials, authority.trusted_pem)
            command = [sys.executable, "-m", "finecut.launcher.node.host_agent", f"--listen={address}:17715"]
            with (folder / f"{address}.log").open("w") as log:
                running[address] = subprocess.Popen(
                    [*command, f"--credentials={credentials}"],
                    env=environment(FINECUT_TEST_HOST=address),
                    stdout=log,
                    stderr=log,
                )
        yield running
    finally:
        for agent in running.values():
            agent.terminate()
            agent.wait(300)


def crash(address: str) -> None:
    """Every process that works on a host ends at once."""
    mark = f"FINECUT_TEST_HOST={address}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)
