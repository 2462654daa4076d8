"""The pairwise network check: round trip and bandwidth from one node to each of its peers, before it joins.

Both ends prove that they know the cluster's token; then the peer echoes small messages and swallows zeros. It measures
TCP on the address that Ray uses. EFA is only counted (see devices.py): what NCCL gets over it shows in training.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

PORT = 17716
_CHALLENGE_BYTES = 32
_PINGS = 30
_BULK_BYTES = 64 * 1024 * 1024
_CHUNK = bytes(1024 * 1024)
_STREAMS = 4  # one TCP stream gets 5 to 10 Gbit/s on EC2
_TIMEOUT_S = 30.0
_PEER_S = 60.0  # nodes of a gang boot at the same time, but not to the second


@dataclass(frozen=True)
class Limits:
    """What the network must deliver; None: that is not checked."""

    min_bandwidth_gbps: float | None = None
    max_latency_us: float | None = None


@dataclass(frozen=True)
class Measurement:
    """To one peer."""

    latency_us: float
    bandwidth_gbps: float


class Responder:
    """Answers peers that know the token, in threads of its own, until it is closed."""

    def __init__(self, address: str, token: str, port: int = PORT) -> None:
        self._token = token.encode()
        self._server = socket.create_server((address, port))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, name="network-check", daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(_TIMEOUT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            challenge = secrets.token_bytes(_CHALLENGE_BYTES)
            try:
                connection.sendall(challenge)
                if not hmac.compare_digest(_receive(connection, 32), _proof(self._token, challenge)):
                    return
                while kind := connection.recv(1):
                    if kind == b"b":
                        _receive(connection, _BULK_BYTES // _STREAMS, keep=False)
                    connection.sendall(kind)
            except OSError:
                return


def measure(address: str, token: str, port: int = PORT) -> Measurement:
    """Measures the way to one peer.

    Raises:
      OSError: It does not answer, or does not know the token.
    """
    with _connect(address, token, port) as connection:
        trips = []
        for _ in range(_PINGS):
            start = time.perf_counter()
            connection.sendall(b"p")
            _receive(connection, 1)
            trips.append(time.perf_counter() - start)
    streams = [_connect(address, token, port) for _ in range(_STREAMS)]
    threads = [threading.Thread(target=_send_bulk, args=(stream,)) for stream in streams]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    for stream in streams:
        stream.close()
    # The median: single trips are held up by the scheduler, not by the network.
    return Measurement(1e6 * sorted(trips)[_PINGS // 2], 8e-9 * _BULK_BYTES / seconds)


def complaints(peers: list[str], token: str, limits: Limits, port: int = PORT) -> Iterator[str]:
    """A sentence for each peer to which the network is slower or longer than expected.

    A peer that does not answer within a minute is left out: it may be the one that is broken, and who reaches nobody
    does not reach Ray's head either.
    """
    for peer in peers:
        found = _measure_when_up(peer, token, port)
        if found is None:
            continue
        if limits.min_bandwidth_gbps and found.bandwidth_gbps < limits.min_bandwidth_gbps:
            yield f"{found.bandwidth_gbps:.1f} Gbit/s to {peer}, expected at least {limits.min_bandwidth_gbps:g}"
        if limits.max_latency_us and found.latency_us > limits.max_latency_us:
            yield f"{found.latency_us:.0f} us to {peer} and back, expected at most {limits.max_latency_us:g}"


def _measure_when_up(address: str, token: str, port: int) -> Measurement | None:
    deadline = time.monotonic() + _PEER_S
    while True:
        try:
            return measure(address, token, port)
        except OSError:
            if time.monotonic() > deadline:
                return None
            time.sleep(1.0)


def _connect(address: str, token: str, port: int) -> socket.socket:
    connection = socket.create_connection((address, port), timeout=_TIMEOUT_S)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(_proof(token.encode(), _receive(connection, _CHALLENGE_BYTES)))
        return connection
    except OSError:
        connection.close()
        raise


def _send_bulk(connection: socket.socket) -> None:
    connection.sendall(b"b")
    for _ in range(_BULK_BYTES // _STREAMS // len(_CHUNK)):
        connection.sendall(_CHUNK)
    _receive(connection, 1)


def _receive(connection: socket.socket, size: int, keep: bool = True) -> bytes:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise ConnectionError("the peer closed the connection")
        size -= len(part)
        if keep:
            parts.append(part)
    return b"".join(parts)


def _proof(token: bytes, challenge: bytes) -> bytes:
    return hmac.digest(token, b"finecut network check" + challenge, "sha256")
