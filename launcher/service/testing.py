"""A service in a process of its own, with fakes for what its launchers run; for tests and benchmarks."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finecut.launcher import driver, testing
from finecut.launcher.client import JobClient
from finecut.launcher.service import child, logs, server, settings

MODULE = "finecut.launcher.service.testing"
LEASE_SECONDS = 5.0


class Service:
    """A running service.

    Args:
      config: Of the service, in text format, without listen, folder and metrics.
    """

    def __init__(self, folder: Path, config: str = 'single_user: "ann"', **environment: str) -> None:
        self.folder = folder
        self._config = config
        self._environment = environment
        self.start()

    def start(self) -> None:
        """Starts the process and waits until it answers; its port is a new one each time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "service.textproto"
        file.write_text(f'listen: "127.0.0.1:0" metrics: "127.0.0.1:0" folder: "{self.folder}/service" {self._config}')
        self.log = self.folder / "service.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", MODULE, "serve", str(file)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=testing.environment(**self._environment),
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.address, self.metrics_port = line.split()

    def client(self, certificates: Path | None = None) -> JobClient:
        return JobClient(self.address, certificates)

    def kill(self) -> None:
        """As a crash would end it."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """As an operator would end it; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def running(folder: Path, config: str = 'single_user: "ann"', **environment: str) -> Iterator[Service]:
    """A service that is ended with the block."""
    service = Service(folder, config, **environment)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.stop()


def main() -> None:
    """`serve FILE`: a service whose launchers are `run FILE` and `release FILE` of this module, with fake stages."""
    driver.LOCAL = testing.fake_machinery(testing.misbehave)
    if sys.argv[1] != "serve":
        sys.exit(child.main(sys.argv[1:]))
    logs.configure()
    server.serve(
        settings.load(sys.argv[2]),
        lambda found: print(found.grpc, found.metrics_port, flush=True),
        server.Options(module=MODULE, lease_seconds=float(os.environ.get("FINECUT_TEST_LEASE", LEASE_SECONDS))),
    )
    assert threading.active_count() == 1, threading.enumerate()


if __name__ == "__main__":
    main()
