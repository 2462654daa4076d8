"""The agent of a host that one already has. It joins one cluster at a time, for as long as the launcher holds the line.

Usage:
  host_agent --listen=ADDRESS:PORT --credentials=FOLDER   started by the user; launchers connect by mutual TLS
  host_agent --stdin                                      started by the launcher over SSH

The launcher sends one line: a Request as JSON. The agent answers with one line, {"error": ""} or why not; then both
wait. Later lines are requests of the same form with newer certificates, which are not answered.
When the connection ends, however it ends, the host leaves the cluster. FOLDER holds certificate.pem, key.pem and
authority.pem; only launchers with a certificate of the same authority are served.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from absl import app, flags

from finecut.launcher.health import devices
from finecut.launcher.node.ray_node import RayNode
from finecut.launcher.node.secret import NodeSecret
from finecut.proto.run import ray_session

_LISTEN = flags.DEFINE_string("listen", None, "ADDRESS:PORT to serve launchers at.")
_CREDENTIALS = flags.DEFINE_string("credentials", None, "Folder with certificate.pem, key.pem and authority.pem.")
_STDIN = flags.DEFINE_bool("stdin", False, "Serve one launcher on standard input and output.")

_LONGEST_LINE = 1 << 16
_HANDSHAKE_S = 30.0
_ROUND_S = 5.0


@dataclass(frozen=True)
class Request:
    """What a launcher asks of a host. Counts None: all that there is."""

    host: str
    secret: NodeSecret
    cpu_count: int | None
    gpu_count: int | None
    role: str = ""

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Request:
        fields = json.loads(line)
        secret = NodeSecret.parse(json.dumps(fields.pop("secret")))
        return cls(secret=secret, **fields)


def context(folder: Path, purpose: ssl.Purpose) -> ssl.SSLContext:
    """Mutual TLS with the files in a folder, for a server (CLIENT_AUTH) or a client (SERVER_AUTH)."""
    made = ssl.create_default_context(purpose, cafile=str(folder / "authority.pem"))
    made.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    made.verify_mode = ssl.CERT_REQUIRED
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    return made


def serve(reading: BinaryIO, writing: BinaryIO | socket.SocketIO) -> None:
    """Serves one launcher: joins, answers, and leaves when the launcher is gone."""
    try:
        request = Request.parse(reading.readline(_LONGEST_LINE))
    except (ValueError, TypeError, KeyError) as error:
        _answer(writing, f"not a request ({type(error).__name__})")
        return
    folder = ray_session.make_folder()
    gpus = devices.count_gpus() if request.gpu_count is None else request.gpu_count
    cpus = request.cpu_count or len(os.sched_getaffinity(0))
    node = RayNode(request.host, cpus, gpus, request.role, folder)
    try:
        problems = [*devices.missing(gpus, efa_cards=0), *node.complaints(request.secret)]
        _answer(writing, "; ".join(problems))
        if problems:
            return
        node.join(request.secret)
        with _kept(node) as lock:
            while line := reading.readline(_LONGEST_LINE):  # until the launcher ends
                with lock:
                    node.renew(Request.parse(line).secret)
    finally:
        node.end()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _kept(node: RayNode) -> Iterator[threading.Lock]:
    """Keeps the node a member meanwhile; whoever else touches it takes the lock."""
    ended, lock = threading.Event(), threading.Lock()

    def keep() -> None:
        while not ended.wait(_ROUND_S):
            with lock:
                node.stay()

    keeper = threading.Thread(target=keep, name="keeper", daemon=True)
    keeper.start()
    try:
        yield lock
    finally:
        ended.set()
        keeper.join()


def listen(server: socket.socket, tls: ssl.SSLContext) -> None:
    """Serves launchers, one after the other, until the socket is closed."""
    while True:
        try:
            connection, address = server.accept()
        except OSError:
            return
        try:
            connection.settimeout(_HANDSHAKE_S)
            with tls.wrap_socket(connection, server_side=True) as secure:
                secure.settimeout(None)
                secure.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                with secure.makefile("rb") as reading, secure.makefile("wb", buffering=0) as writing:
                    serve(reading, writing)
        except OSError as error:  # a stranger, or a launcher that was killed
            print(f"connection from {address[0]} ended: {error}", file=sys.stderr, flush=True)


def _answer(writing: BinaryIO | socket.SocketIO, error: str) -> None:
    writing.write(json.dumps({"error": error}).encode() + b"\n")
    writing.flush()


def main(arguments: list[str]) -> None:
    """Serves as the flags say."""
    del arguments
    if _STDIN.value:
        serve(sys.stdin.buffer, sys.stdout.buffer)
        return
    if not _LISTEN.value or not _CREDENTIALS.value:
        raise app.UsageError("give --listen and --credentials, or --stdin")
    address, _, port = _LISTEN.value.rpartition(":")
    with socket.create_server((address, int(port))) as server:
        print(f"waiting for launchers at {_LISTEN.value}", flush=True)
        listen(server, context(Path(_CREDENTIALS.value), ssl.Purpose.CLIENT_AUTH))


if __name__ == "__main__":
    app.run(main)
