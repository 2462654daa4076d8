"""Keys and certificates of endpoints: what is asked with them is heard, what is wrong with them is told."""

import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from finecut.proto.config import UserError
from finecut.trainer.serving import authentication
from finecut.trainer.serving.control import CONNECTION_LOST, Control
from finecut.trainer.serving.testing_endpoint import KEY, serving


def write_certificate(folder, name):
    """One that signs itself, for another address than where it is used here."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    built = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    address = x509.IPAddress(ipaddress.ip_address("10.0.0.5"))
    signed = built.add_extension(x509.SubjectAlternativeName([address]), critical=False).sign(key, hashes.SHA256())
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(key.private_bytes(*plain))
    return str(folder / f"{name}.pem"), str(folder / f"{name}.key")


def test_only_the_endpoints_own_certificate_is_trusted(tmp_path):
    certificate, key = write_certificate(tmp_path, "own")
    other, _ = write_certificate(tmp_path, "other")
    with serving(tmp_path, authentication.server_tls(certificate, key)) as served:
        port = int(served.url.rpartition(":")[2])
        control = Control("127.0.0.1", port, KEY, certificate)
        assert control.address == served.url and control.status()["state"] == "empty"
        assert control.find("chat")["endpoint"] == "chat"
        with pytest.raises(CONNECTION_LOST):
            Control("127.0.0.1", port, KEY, other).status()
        with pytest.raises(UserError, match=r"deploy\.api_key: .* wants another key"):
            Control("127.0.0.1", port, "not this one, surely", certificate).find("chat")
        with pytest.raises(UserError, match=f"port {port} is in use by endpoint 'chat'"):
            control.find("translate")


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("ENDPOINT_KEY", KEY)
    assert authentication.read_key(str(tmp_path / "key"), "") == authentication.read_key("", "ENDPOINT_KEY") == KEY
    assert authentication.read_key("", "") == ""
    (tmp_path / "short").write_text("1234")
    for file, variable, said in (
        (str(tmp_path / "short"), "", "holds 4 characters; write a key of at least 16"),
        (str(tmp_path / "none"), "", "cannot be read"),
        ("", "NOT_SET_HERE", "environment_variable: NOT_SET_HERE holds 0 characters"),
    ):
        with pytest.raises(UserError, match=said):
            authentication.read_key(file, variable)


def test_a_certificate_without_its_key_is_refused(tmp_path):
    certificate, _ = write_certificate(tmp_path, "own")
    _, key = write_certificate(tmp_path, "other")
    with pytest.raises(UserError, match="are no certificate and its key"):
        authentication.server_tls(certificate, key)
