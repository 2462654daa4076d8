"""`launcher serve` as an operator starts it, with certificates of an authority of its own."""

import datetime
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from finecut.launcher.client import JobClient
from finecut.launcher.security.authority import Authority
from finecut.launcher.testing import environment

PATIENCE_SECONDS = 800.0

_CONFIG = """
listen: "127.0.0.1:{port}"
metrics: "127.0.0.1:0"
folder: "{folder}/service"
certificates: "{folder}/certificates/service"
principals {{ name: "ann" folders: "{folder}" }}
"""


def until(condition: Callable[[], object], what: str) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


class RealService:
    """A running service; ann may use what is below `folder`."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self._folder = folder
        self._variables = variables
        authority = Authority.create(folder / "authority")
        for name, addresses in (("service", ["127.0.0.1"]), ("ann", [])):
            certificate = authority.mint(name, addresses, datetime.timedelta(hours=5))
            certificate.write(folder / "certificates" / name, authority.trusted_pem)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.log = folder / "service.log"
        (folder / "service.textproto").write_text(_CONFIG.format(port=port, folder=folder))
        self.start()

    def start(self) -> None:
        """Starts the process, always at the same address, and waits until it listens."""
        command = [sys.executable, "-m", "finecut.launcher.main", "serve"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, f"--service_config={self._folder}/service.textproto"],
                stdout=log,
                stderr=log,
                env=environment(**self._variables),
            )
        until(self._listens, "the service did not start")

    def client(self) -> JobClient:
        """Ann's."""
        return JobClient(self.address, self._folder / "certificates" / "ann", deadline=PATIENCE_SECONDS)

    def kill(self) -> None:
        """As a crash would end it."""
        self.process.kill()
        self.process.wait()

    def launchers(self) -> list[int]:
        """Launcher processes of its jobs, whoever is their parent."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if f"{self._folder}/service/jobs/".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue  # it has ended
        return found

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            host, _, port = self.address.partition(":")
            socket.create_connection((host, int(port)), 10).close()
        except OSError:
            return False
        return True


@contextmanager
def running(folder: Path, **variables: str) -> Iterator[RealService]:
    """A service that is ended with the block."""
    service = RealService(folder, variables)
    try:
        yield service
    finally:
        service.process.terminate()
        try:
            service.process.wait(PATIENCE_SECONDS)
        finally:
            service.kill()
