"""Hosts that one has, as members of a cluster: asked to join, kept in, let go.

join     each host's agent is asked -> all have joined -> lines are kept: a host that comes back joins
leave    lines are closed: the hosts leave by themselves, also when this launcher is killed
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from finecut.launcher.node.host_agent import Request
from finecut.launcher.providers import host_lines
from finecut.launcher.providers.host_lines import Line
from finecut.launcher.providers.membership import Membership
from finecut.launcher.reconcile import store as states
from finecut.launcher.reconcile.store import Store
from finecut.proto import cluster_pb2
from finecut.proto.config import UserError

_log = logging.getLogger("finecut.launcher")
_JOIN_S = 600.0
_POLL_S = 1.0
_RETRY_S = 5.0


class Hosts:
    """One run's hosts. `each_round` is called every few seconds while they are members.

    `role`: as in node_roles; "": they take any work.
    """

    def __init__(
        self,
        static: cluster_pb2.Static,
        membership: Membership,
        store: Store,
        say: Callable[[str], None],
        each_round: Callable[[], None] = lambda: None,
        role: str = "",
    ) -> None:
        self._static = static
        self._membership = membership
        self._store = store
        self._say = say
        self._each_round = each_round
        self._role = role
        self._lines: dict[str, Line] = {}
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="hosts", daemon=True)

    def join(self) -> None:
        """Returns once all have joined Ray. Raises UserError: one cannot be reached, refuses, or does not join."""
        for host in self._static.hosts:
            self._connect(host)
        self._wait()
        for host in self._static.hosts:
            self._store.host(host.address, states.ADMITTED)
        self._keeper.start()

    @property
    def num_alive(self) -> int:
        """Hosts that are members now."""
        members = self._membership.members()
        return sum(host.address in members and members[host.address].is_alive for host in self._static.hosts)

    def leave(self) -> None:
        """Lets them go. Called again, or before `join`: nothing changes."""
        self._stopping.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for address, line in self._lines.items():
            line.close()
            self._store.host(address, states.ENDED)
        self._lines.clear()

    def has(self, address: str) -> bool:
        """Whether it is one of them."""
        return address in self._lines

    def renew(self, address: str) -> None:
        """Sends a host a newer certificate."""
        try:
            self._lines[address].send(self._request(self._host(address)))
        except OSError as error:  # the keeper connects it anew, with a certificate
            _log.warning("host %s: %s", address, error)

    def _host(self, address: str) -> cluster_pb2.Static.Host:
        return next(host for host in self._static.hosts if host.address == address)

    def _connect(self, host: cluster_pb2.Static.Host) -> None:
        self._lines[host.address] = host_lines.open_line(self._static, host, self._request(host))

    def _request(self, host: cluster_pb2.Static.Host) -> Request:
        peers = [other.address for other in self._static.hosts if other.address in self._lines and other != host]
        return Request(
            host=host.address,
            secret=self._membership.secret(host.address, host.address, peers),
            cpu_count=host.cpu_count if host.HasField("cpu_count") else None,
            gpu_count=host.gpu_count if host.HasField("gpu_count") else None,
            role=self._role,
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + _JOIN_S
        while missing := self._missing():
            closed = [address for address in missing if not self._lines[address].is_open()]
            if closed or time.monotonic() > deadline:
                raise UserError(f"{', '.join(closed or missing)} did not join Ray; see the agent's output there")
            time.sleep(_POLL_S)

    def _missing(self) -> list[str]:
        members = self._membership.members()
        return [
            host.address
            for host in self._static.hosts
            if host.address not in members or not members[host.address].is_alive
        ]

    def _keep(self) -> None:
        """Asks hosts again whose line has ended; training waits for them or goes on with fewer ranks meanwhile."""
        while not self._stopping.wait(_RETRY_S):
            for host in self._static.hosts:
                if self._stopping.is_set() or self._lines[host.address].is_open():
                    continue
                try:
                    self._connect(host)
                    self._say(f"host {host.address} is back")
                except UserError as error:
                    _log.warning("host %s: %s", host.address, error)
            self._each_round()
