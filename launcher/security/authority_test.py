"""Certificates as the other side sees them: who is trusted, for which address, until when."""

import datetime
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from finecut.launcher.security.authority import Authority, Certificate, is_due
from finecut.proto.config import UserError

HOUR = datetime.timedelta(hours=1)


def context(purpose: ssl.Purpose, folder: Path, certificate: Certificate, trusted: bytes) -> ssl.SSLContext:
    certificate.write(folder, trusted)
    made = ssl.create_default_context(purpose, cafile=str(folder / "authority.pem"))
    made.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A mutual handshake over a pair of sockets; raises what the client or the server objects to."""
    left, right = socket.socketpair()
    refused: list[ssl.SSLError] = []

    def serve() -> None:
        try:
            with server.wrap_socket(left, server_side=True) as connection:
                connection.sendall(b"1")
        except ssl.SSLError as error:
            refused.append(error)
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(right, server_hostname=name) as connection:
            connection.recv(1)  # with TLS 1.3 a refused client learns it only here
    except ConnectionError:
        pass
    finally:
        thread.join(300)
        left.close()
    if refused:
        raise refused[0]


def pair(folder: Path, server: Authority, client: Authority | None = None) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The two sides of a handshake; both trust the server's authority."""
    node = server.mint("node", ["127.0.0.1", "::1", "node.local"], HOUR)
    caller = (client or server).mint("caller", [], HOUR)
    return (
        context(ssl.Purpose.CLIENT_AUTH, folder / "server", node, server.trusted_pem),
        context(ssl.Purpose.SERVER_AUTH, folder / "client", caller, server.trusted_pem),
    )


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "node.local"])
def test_both_sides_accept_certificates_of_one_authority(tmp_path: Path, name: str) -> None:
    handshake(*pair(tmp_path, Authority.create(tmp_path / "ca")), name)


@pytest.mark.parametrize("name", ["127.0.0.2", "other.local"])
def test_address_that_is_not_in_the_certificate_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ssl.SSLError, match=r"CERTIFICATE_VERIFY_FAILED|ALERT"):
        handshake(*pair(tmp_path, Authority.create(tmp_path / "ca")), name)


def test_client_of_another_authority_is_refused(tmp_path: Path) -> None:
    ours, other = Authority.create(tmp_path / "ours"), Authority.create(tmp_path / "other")
    with pytest.raises(ssl.SSLError, match=r"verify failed|UNKNOWN_CA"):
        handshake(*pair(tmp_path, ours, other), "127.0.0.1")


def test_certificates_of_before_and_after_a_rotation_accept_each_other(tmp_path: Path) -> None:
    before = Authority.create(tmp_path / "ca")
    old = before.mint("node", ["127.0.0.1"], HOUR)
    after = before.rotate()
    assert after.trusted_pem.startswith(Authority.load(tmp_path / "ca").trusted_pem)
    new = after.mint("caller", [], HOUR)
    server = context(ssl.Purpose.CLIENT_AUTH, tmp_path / "server", old, after.trusted_pem)
    client = context(ssl.Purpose.SERVER_AUTH, tmp_path / "client", new, after.trusted_pem)
    handshake(server, client, "127.0.0.1")
    twice = after.rotate()
    assert len(x509.load_pem_x509_certificates(twice.trusted_pem)) == 2, "only the one before stays trusted"


def test_loaded_authority_is_the_created_one(tmp_path: Path) -> None:
    created = Authority.create(tmp_path)
    assert Authority.load(tmp_path).trusted_pem == created.trusted_pem
    with pytest.raises(UserError, match="holds an authority already"):
        Authority.create(tmp_path)


def test_missing_damaged_or_mixed_files_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no authority"):
        Authority.load(tmp_path)
    Authority.create(tmp_path / "a")
    Authority.create(tmp_path / "b")
    (tmp_path / "a" / "authority-key.pem").write_bytes((tmp_path / "b" / "authority-key.pem").read_bytes())
    with pytest.raises(UserError, match="is not the key of"):
        Authority.load(tmp_path / "a")
    (tmp_path / "b" / "authority.pem").write_text("torn")
    with pytest.raises(UserError, match="cannot be read"):
        Authority.load(tmp_path / "b")


def test_keys_are_private_and_never_shown(tmp_path: Path) -> None:
    certificate = Authority.create(tmp_path / "ca").mint("node", ["127.0.0.1"], HOUR)
    certificate.write(tmp_path / "node", b"")
    for path in (tmp_path / "ca" / "authority-key.pem", tmp_path / "node" / "key.pem"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert "CN=node" in repr(certificate) and "PRIVATE" not in f"{certificate}{certificate!r}"


def test_certificate_is_due_in_the_last_third_and_ends_with_its_authority(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    assert not is_due(authority.mint("node", [], HOUR).cert_pem)
    assert is_due(authority.mint("node", [], datetime.timedelta(seconds=1)).cert_pem)
    longest = x509.load_pem_x509_certificate(authority.mint("node", [], datetime.timedelta(days=99999)).cert_pem)
    assert longest.not_valid_after_utc == x509.load_pem_x509_certificate(authority.trusted_pem).not_valid_after_utc


@pytest.mark.parametrize(
    ("name", "addresses", "lifetime", "sentence"),
    [
        ("", [], HOUR, "cannot name a certificate"),
        ("n" * 65, [], HOUR, "cannot name a certificate"),
        ("node", ["müller"], HOUR, "neither an IP address nor a DNS name"),
        ("node", [], -HOUR, "lifetime above zero"),
    ],
)
def test_what_no_certificate_can_hold_is_refused(
    tmp_path: Path, name: str, addresses: list[str], lifetime: datetime.timedelta, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        Authority.create(tmp_path).mint(name, addresses, lifetime)
