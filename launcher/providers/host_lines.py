"""The line to a host's agent: mutual TLS to one that the user has started, or SSH that starts one."""

from __future__ import annotations

import getpass
import json
import shlex
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import IO, Protocol

from finecut.launcher.node import host_agent
from finecut.launcher.node.host_agent import Request
from finecut.proto import cluster_pb2
from finecut.proto.config import UserError
from finecut.proto.run import ray_session

_CONNECT_S = 30.0
_ANSWER_S = 1200.0  # DCGM and the network check take their time


class Line(Protocol):
    """An open line. Closing it makes the host leave."""

    def is_open(self) -> bool: ...

    def send(self, request: Request) -> None:
        """Sends what renews the host's certificate. Raises OSError where the line has ended."""

    def close(self) -> None: ...


def open_line(static: cluster_pb2.Static, host: cluster_pb2.Static.Host, request: Request) -> Line:
    """Asks a host to join and returns once it does.

    Raises:
      UserError: It cannot be reached, does not trust this launcher, or refuses.
    """
    if host.access == cluster_pb2.Static.SSH:
        return _SshLine(host, request)
    return _TlsLine(Path(static.credentials), host, request)


class _TlsLine:
    def __init__(self, credentials: Path, host: cluster_pb2.Static.Host, request: Request) -> None:
        place = f"{host.address}:{host.port}"
        try:
            tls = host_agent.context(credentials, ssl.Purpose.SERVER_AUTH)
        except (OSError, ssl.SSLError) as error:
            raise UserError(f"cluster.static.credentials: {credentials} cannot be used ({error})") from None
        try:
            connection = socket.create_connection((host.address, host.port), timeout=_CONNECT_S)
            self._connection = tls.wrap_socket(connection, server_hostname=host.address)
            self._connection.settimeout(_ANSWER_S)
            self._connection.sendall(request.dump())
            with self._connection.makefile("rb") as reading:
                _check(reading.readline(), place)
            self._connection.setblocking(False)
        except ssl.SSLError as error:
            raise UserError(
                f"the agent at {place} and this launcher do not trust each other ({error.reason})"
            ) from None
        except OSError as error:
            raise UserError(f"the agent at {place} cannot be reached ({error}); start it there") from None

    def is_open(self) -> bool:
        try:
            return bool(self._connection.recv(1))
        except (ssl.SSLWantReadError, BlockingIOError):
            return True
        except OSError:
            return False

    def send(self, request: Request) -> None:
        self._connection.settimeout(_CONNECT_S)
        try:
            self._connection.sendall(request.dump())
        finally:
            self._connection.setblocking(False)

    def close(self) -> None:
        self._connection.close()


class _SshLine:
    """The secret goes through SSH's standard input, never onto a command line."""

    def __init__(self, host: cluster_pb2.Static.Host, request: Request) -> None:
        user = host.ssh_user or getpass.getuser()
        code = ray_session.python_path()
        python = f"env PYTHONPATH={shlex.quote(code)} {shlex.quote(host.python or sys.executable)}"
        command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S:.0f}", f"{user}@{host.address}"]
        self._process = subprocess.Popen(
            [*command, f"{python} -m finecut.launcher.node.host_agent --stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _pipe(self._process.stdin).write(request.dump())
            _pipe(self._process.stdin).flush()
            answer = _pipe(self._process.stdout).readline()
        except OSError:
            answer = b""
        if not answer:
            _, errors = self._process.communicate()
            lines = errors.decode("utf-8", "replace").strip().splitlines()
            raise UserError(f"ssh to {user}@{host.address} failed: {lines[-1] if lines else 'no answer'}")
        _check(answer, host.address)

    def is_open(self) -> bool:
        return self._process.poll() is None

    def send(self, request: Request) -> None:
        _pipe(self._process.stdin).write(request.dump())
        _pipe(self._process.stdin).flush()

    def close(self) -> None:
        _pipe(self._process.stdin).close()
        try:
            self._process.wait(_CONNECT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _check(answer: bytes, place: str) -> None:
    try:
        error = json.loads(answer)["error"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{place} does not answer as a Finecut agent does; check its address and port") from None
    if error:
        raise UserError(f"{place} does not join: {error}")
