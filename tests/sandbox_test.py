"""Tests are hermetic: loopback answers, and nothing else of the network is there."""

import errno
import socket

import pytest


def test_loopback_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
        pass


def test_the_outside_does_not() -> None:
    with pytest.raises(OSError) as caught:
        # An address that documentation reserves (RFC 5737): with a network it would time out instead.
        socket.create_connection(("192.0.2.1", 80), timeout=2)
    assert caught.value.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)


def test_no_name_is_found() -> None:
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("example.com", 443)
