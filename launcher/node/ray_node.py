"""A machine's membership in a cluster: its files, its network check, its Ray node."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from finecut.launcher.health import network
from finecut.launcher.node import drain, ray_commands
from finecut.launcher.node.secret import NodeSecret
from finecut.launcher.security.authority import Certificate, write_private
from finecut.proto.run import ray_session

_END_S = 30.0
_START_S = 90.0


class RayNode:
    """One machine's Ray node. `folder` is private and short (see ray_session.make_folder).

    `role`: as in node_roles; "": it takes any work.
    """

    def __init__(self, instance: str, cpus: int, gpus: int, role: str, folder: Path) -> None:
        self._instance = instance
        self._role = role
        self._cpus = cpus
        self._gpus = gpus
        self._folder = folder
        self._secret: NodeSecret | None = None
        self._environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._joined_at = 0.0
        self._responder: network.Responder | None = None

    def stay(self) -> None:
        """Joins again where Ray ended here, or did not get up: a busy machine may be too slow for Ray's own limits."""
        if self._secret is not None and not self.is_member(self._secret):
            self.join(self._secret)

    def renew(self, secret: NodeSecret) -> None:
        """Takes a newer certificate, and whom to trust, for the processes that start from now on."""
        if self._secret is None or secret.certificate == self._secret.certificate:
            return
        self._write_certificate(secret)
        self._secret = secret

    def is_member(self, secret: NodeSecret) -> bool:
        """Whether this machine has joined where the secret leads, and is there still."""
        return secret.admits_as(self._secret) and self._process is not None and self._is_alive(self._process)

    def _is_alive(self, process: subprocess.Popen[bytes]) -> bool:
        """A start that fails on a busy machine does not always end `ray start`, which then waits for ever."""
        has_started = ray_commands.has_started(self._folder)
        return process.poll() is None and (has_started or time.monotonic() - self._joined_at < _START_S)

    @property
    def has_joined(self) -> bool:
        return self._process is not None

    def complaints(self, secret: NodeSecret) -> Iterator[str]:
        """Measures the network to the peers. From now on this machine answers theirs."""
        if self._responder is None:
            try:
                self._responder = network.Responder(secret.address, secret.token)
            except OSError as error:
                yield f"{secret.address} cannot be used on this machine ({error})"
                return
        limits = network.Limits(secret.min_bandwidth_gbps, secret.max_latency_us)
        if limits != network.Limits():
            yield from network.complaints(list(secret.peers), secret.token, limits)

    def join(self, secret: NodeSecret) -> None:
        """Joins, after leaving where it was before."""
        self.end()
        token = self._folder / "token"
        write_private(token, secret.token.encode())
        tls = self._write_certificate(secret)
        self._environment = os.environ | ray_session.environment(token) | ray_commands.open_to_members(tls)
        self._secret = secret
        self._joined_at = time.monotonic()
        self._process = ray_commands.start_node(
            *(secret.head, secret.address, self._instance, self._cpus, self._gpus, self._role),
            folder=self._folder,
            environment=self._environment,
        )

    def _write_certificate(self, secret: NodeSecret) -> Path:
        folder = self._folder / "tls"
        Certificate(secret.certificate.encode(), secret.key.encode()).write(folder, secret.authority.encode())
        return folder

    def drain(self, reason: str, seconds: float) -> bool:
        """Has training save and leave this machine. Whether Ray agreed."""
        assert self._secret is not None, "it has joined"
        return drain.drain(self._secret.head, self._instance, reason, seconds, self._environment)

    def end(self) -> None:
        """Leaves Ray; whatever worked here is cut off. Ended again: nothing changes."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
