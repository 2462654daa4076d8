"""A service in a process of its own, with fakes for what its launchers run; for tests and benchmarks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from finecut.launcher import driver, testing
from finecut.launcher.client import JobClient
from finecut.launcher.security.authority import Authority
from finecut.launcher.service import child, logs, server, settings
from finecut.proto import job_pb2, service_pb2
from finecut.proto.config import load_resolved
from finecut.proto.run import RunFolder

MODULE = "finecut.launcher.service.testing"
_LEASE_SECONDS = 60.0  # long enough for a service to renew it on a machine that hardly gets on
_PATIENCE_SECONDS = 300.0


class Service:
    """A running service.

    Args:
      config: Of the service, in text format, without what is set here: listen, metrics, folder, certificates.
      callers: Names that get a certificate. None: no TLS; everybody is ann.
      environment: Variables of the service and of the launchers that it starts.
    """

    def __init__(
        self, folder: Path, config: str = "", callers: Sequence[str] = (), environment: dict[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._environment = environment or {}
        self.state = folder / "service"
        self.log = folder / "service.log"
        folder.mkdir(parents=True, exist_ok=True)
        if callers:
            self.authority = Authority.create(folder / "authority")
            self.certify("service", ["127.0.0.1"])
            for caller in callers:
                self.certify(caller)
            config += f' certificates: "{self.certificates("service")}"'
        else:
            config += ' single_user: "ann"'
        self._file = folder / "service.textproto"
        self._config = f'listen: "127.0.0.1:PORT" metrics: "127.0.0.1:0" folder: "{self.state}" {config}'
        self._is_secure = bool(callers)
        self.start()

    def certify(self, name: str, addresses: Sequence[str] = (), lifetime: timedelta = timedelta(hours=1)) -> None:
        """Gives `name` a certificate, or a new one."""
        certificate = self.authority.mint(name, addresses, lifetime)
        certificate.write(self.certificates(name), self.authority.trusted_pem)

    def certificates(self, name: str) -> Path:
        return self._folder / "certificates" / name

    def start(self, port: str = "0") -> None:
        """Starts the process and waits until it answers, at a new port each time unless one is given."""
        text = self._config.replace("127.0.0.1:PORT", f"127.0.0.1:{port}")
        self._file.write_text(text)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", MODULE, "serve", str(self._file)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=testing.environment(**self._environment),
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.address, self.metrics_port = line.split()

    def client(self, name: str = "ann") -> JobClient:
        return JobClient(self.address, self.certificates(name) if self._is_secure else None, _PATIENCE_SECONDS)

    def launchers(self) -> list[int]:
        """Launcher processes of its jobs, whoever is their parent."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has ended
                words = path.read_bytes().split(b"\0")
                if MODULE.encode() in words and any(f"{self.state}/jobs".encode() in word for word in words):
                    found.append(int(path.parent.name))
        return found

    def kill(self) -> None:
        """As a crash would end it."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """As an operator would end it; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_PATIENCE_SECONDS)


@contextmanager
def running(folder: Path, config: str = "", callers: Sequence[str] = (), **environment: str) -> Iterator[Service]:
    """A service that is ended with the block."""
    service = Service(folder, config, callers, environment)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.stop()


class NotingProvider(testing.FakeProvider):
    """Leaves a file where it was asked to give everything back."""

    def __init__(self, job: job_pb2.JobConfig, folder: RunFolder) -> None:
        super().__init__(job, folder)
        self._released = folder.root / "released"

    def release(self) -> None:
        super().release()
        self._released.parent.mkdir(parents=True, exist_ok=True)
        self._released.touch()


def tell(job: job_pb2.JobConfig, misbehaviour: str) -> None:
    """Has the job's stages do what `misbehave` says, whatever the service's environment asks for."""
    Path(job.storage.root).mkdir(parents=True, exist_ok=True)
    _told(job).write_text(misbehaviour)


def _told(job: job_pb2.JobConfig) -> Path:
    return Path(job.storage.root, "misbehave")


def until(condition: Callable[[], object], what: str) -> None:
    """Waits until a condition holds, for as long as a test may wait for anything."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def until_in(stage: str, client: JobClient, job_id: str) -> None:
    """Waits until a job is at work on a stage."""
    until(
        lambda: (stage, service_pb2.RUNNING) in {(each.name, each.state) for each in client.get(job_id).stages},
        f"{stage} was not reached",
    )


def misbehave(stage: str) -> None:
    """Beside what testing.misbehave does: "hold:sft:FILE" waits there for a file, "crash" ends any stage by SIGKILL."""
    action, _, rest = os.environ.get("FINECUT_TEST_MISBEHAVE", "").partition(":")
    name, _, file = rest.partition(":")
    if action == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    while action == "hold" and stage == name and not Path(file).exists():
        time.sleep(0.05)
    testing.misbehave(stage)


def main() -> None:
    """`serve FILE`: a service whose launchers are `run FILE` and `release FILE` of this module, with fake stages."""
    driver.REAL = driver.Machinery(NotingProvider, testing.fake_machinery(misbehave).executors)
    if sys.argv[1] != "serve":
        if (told := _told(load_resolved(Path(sys.argv[2])))).exists():
            os.environ["FINECUT_TEST_MISBEHAVE"] = told.read_text()
        sys.exit(child.main(sys.argv[1:]))
    logs.configure()
    server.serve(
        settings.load(sys.argv[2]),
        lambda found: print(found.grpc, found.metrics_port, flush=True),
        server.Options(module=MODULE, lease_seconds=float(os.environ.get("FINECUT_TEST_LEASE", _LEASE_SECONDS))),
    )


if __name__ == "__main__":
    main()
