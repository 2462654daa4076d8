"""Instances of moto as real processes: one that runs gets its user data run by bash, one that ends is killed.

The machine's tools that a test machine lacks (shutdown, mount, aws, nvidia-smi) are small scripts; everything else is
what a node runs, under a loopback address of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from finecut.launcher.testing import environment
from finecut.tests.aws.metadata_service import MetadataService
from finecut.tests.aws.testing import Account

_TOOLS = {
    "shutdown": 'echo "$@" >> "$FINECUT_HOME/shutdown.log"',
    "mountpoint": "exit 0",
    "mount": "exit 1",
    "aws": 'tar -czf "${@: -1}" -T /dev/null',  # s3 cp: an empty bundle; the code is on PYTHONPATH
    # run: the command in place of the container, with its variables; everything else is done at once.
    "docker": """[ "$1" = run ] || exit 0
echo "$@" > "$FINECUT_HOME/docker.log"
while [[ "$1" != *@sha256:* ]]; do
  case "$1" in --env) export "$2" ;; --entrypoint) program=$2 ;; esac
  shift
done
PYTHONPATH=$FINECUT_PATH exec "$program" "${@:2}\"""",
    "nvidia-smi": 'echo "GPU 0: NVIDIA A10G (UUID: GPU-0)"',
    "dmesg": 'cat "$FINECUT_HOME/kernel.log"',
}


class Machine:
    """One instance's processes."""

    def __init__(self, instance: str, address: str, user_data: str, folder: Path, url: str) -> None:
        self.instance = instance
        self.home = folder / instance
        self.metadata = MetadataService(instance, address)
        tools = self.home / "bin"
        tools.mkdir(parents=True)
        for name, body in _TOOLS.items():
            (tools / name).write_text(f"#!/bin/bash\n{body}\n")
            (tools / name).chmod(0o755)
        (self.home / "kernel.log").touch()
        (self.home / "user-data").write_text(user_data)
        variables = environment(
            PATH=f"{tools}:{os.environ['PATH']}",
            FINECUT_HOME=str(self.home),
            FINECUT_PATH=environment()["PYTHONPATH"],
            AWS_ENDPOINT_URL=url,
            AWS_EC2_METADATA_SERVICE_ENDPOINT=self.metadata.url,
            AWS_ACCESS_KEY_ID="testing",
            AWS_SECRET_ACCESS_KEY="testing",
            TMPDIR="/tmp",
            OMP_NUM_THREADS="1",
        )
        log = (self.home / "console.log").open("wb")
        self._process = subprocess.Popen(
            ["bash", str(self.home / "user-data")], env=variables, stdout=log, stderr=log, start_new_session=True
        )

    @property
    def console(self) -> str:
        return (self.home / "console.log").read_text()

    def kill(self) -> None:
        """Everything on the machine ends at once."""
        for process in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self.metadata.close()

    def _processes(self) -> list[int]:
        mark = f"FINECUT_HOME={self.home}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found


class Machines:
    """Follows an account's instances."""

    def __init__(self, account: Account, folder: Path) -> None:
        self._account = account
        self._folder = folder
        self._stopping = threading.Event()
        self.machines: dict[str, Machine] = {}
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self) -> None:
        while not self._stopping.wait(0.5):
            live = {instance["InstanceId"]: instance for instance in self._account.live()}
            for name, instance in live.items():
                if name not in self.machines and instance["State"]["Name"] == "running":
                    script = self._account.user_data(name)
                    self.machines[name] = Machine(
                        name, instance["PrivateIpAddress"], script, self._folder, self._account.url
                    )
            for name in [name for name in self.machines if name not in live]:
                self.machines.pop(name).kill()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        for machine in list(self.machines.values()):
            machine.kill()


@contextlib.contextmanager
def running(account: Account, folder: Path) -> Iterator[Machines]:
    """Machines behind an account for as long as the context lasts."""
    machines = Machines(account, folder)
    machines.start()
    try:
        yield machines
    finally:
        machines.stop()
