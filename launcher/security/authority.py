"""A certificate authority of one's own: one for each cluster, one for the service and its clients.

    <folder>/authority.pem      certificates to trust: the current one, and the one before while it is valid
    <folder>/authority-key.pem  the private key (0600), which never leaves the machine that mints

Rotation keeps the old certificate trusted until it ends, so that nodes change certificates one by one and keep talking.
"""

import contextlib
import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from finecut.proto.config import UserError
from finecut.proto.run import files

_BACKDATED = datetime.timedelta(minutes=5)  # clocks of two machines differ a little
_AUTHORITY_LIFETIME = datetime.timedelta(days=3650)


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, both PEM; the text of this object shows neither."""

    cert_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:
        return f"Certificate({x509.load_pem_x509_certificate(self.cert_pem).subject.rfc4514_string()})"

    def write(self, folder: Path, trusted_pem: bytes) -> None:
        """Writes certificate.pem, key.pem (0600) and authority.pem, each whole or not at all.

        The certificate comes last: who reloads when it changes then finds the key that belongs to it.
        """
        write_private(folder / "key.pem", self.key_pem)
        files.write_atomically(folder / "authority.pem", trusted_pem.decode())
        files.write_atomically(folder / "certificate.pem", self.cert_pem.decode())


class Authority:
    """Mints certificates. Make one with `create` or `load`."""

    def __init__(self, folder: Path, key: ec.EllipticCurvePrivateKey, chain: list[x509.Certificate]) -> None:
        self._folder = folder
        self._key = key
        self._chain = chain

    @classmethod
    def create(cls, folder: Path) -> "Authority":
        """A new authority in a folder that holds none.

        Raises:
          UserError: There is one already; replacing it would cut off everybody who trusts it.
        """
        if _certificate_path(folder).exists():
            raise UserError(f"{folder} holds an authority already; use it, or choose another folder")
        return cls(folder, ec.generate_private_key(ec.SECP256R1()), [])._renewed()

    @classmethod
    def load(cls, folder: Path) -> "Authority":
        """The authority that `create` left.

        Raises:
          UserError: There is none, it cannot be read, or its key belongs to another certificate.
        """
        try:
            chain = x509.load_pem_x509_certificates(_certificate_path(folder).read_bytes())
            key = serialization.load_pem_private_key(_key_path(folder).read_bytes(), password=None)
        except FileNotFoundError as error:
            raise UserError(f"{folder} holds no authority ({error.filename} is missing); create one there") from None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"the authority in {folder} cannot be read: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != chain[0].public_key():
            raise UserError(f"{_key_path(folder)} is not the key of {_certificate_path(folder)}; restore both together")
        return cls(folder, key, chain)

    @property
    def trusted_pem(self) -> bytes:
        """What others trust to accept certificates of this authority: its own, newest first."""
        return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in self._chain)

    def mint(self, name: str, addresses: Sequence[str], lifetime: datetime.timedelta) -> Certificate:
        """A certificate for a server, a client or both.

        Args:
          name: Common name: who the holder is.
          addresses: IP addresses and DNS names at which the holder is reached; empty for one who only calls.
          lifetime: From now on; never beyond the authority's own end.

        Raises:
          UserError: A name or lifetime that no certificate can have.
        """
        if not 1 <= len(name) <= 64 or not name.isprintable():
            raise UserError(f"{name!r} cannot name a certificate; use 1 to 64 printable characters")
        if lifetime <= datetime.timedelta(0):
            raise UserError(f"a certificate cannot live for {lifetime}; give it a lifetime above zero")
        key = ec.generate_private_key(ec.SECP256R1())
        end = min(_now() + lifetime, self._chain[0].not_valid_after_utc)
        builder = _builder(_subject(name), self._chain[0].subject, key.public_key(), end)
        names = [_general_name(address) for address in addresses]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        return Certificate(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))

    def rotate(self) -> "Authority":
        """A new key in the same folder; what the old one signed stays trusted until the old certificate ends."""
        previous = [certificate for certificate in self._chain[:1] if certificate.not_valid_after_utc > _now()]
        return Authority(self._folder, ec.generate_private_key(ec.SECP256R1()), previous)._renewed()

    def _renewed(self) -> "Authority":
        """Signs a certificate for the key and writes both."""
        public = self._key.public_key()
        # A name of its own: with equal names OpenSSL would try the wrong one of two authorities.
        serial = x509.random_serial_number()
        subject = _subject(f"finecut authority {serial:x}"[:40])
        certificate = (
            _builder(subject, subject, public, _now() + _AUTHORITY_LIFETIME, serial)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._chain.insert(0, certificate)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(_key_path(self._folder), _key_pem(self._key))
        files.write_atomically(_certificate_path(self._folder), self.trusted_pem.decode())
        return self


def is_due(cert_pem: bytes) -> bool:
    """Whether a certificate should be renewed: less than a third of its lifetime is left."""
    certificate = x509.load_pem_x509_certificate(cert_pem)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return end - _now() < (end - start) / 3


def write_private(path: Path, content: bytes) -> None:
    """Replaces a file that only this user may read, whole or not at all; it is never readable by others in between."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    files.sync_folder(path.parent)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    end: datetime.datetime,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(_now() - _BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        pass
    try:
        return x509.DNSName(address)
    except ValueError:
        raise UserError(f"{address!r} is neither an IP address nor a DNS name") from None


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate_path(folder: Path) -> Path:
    return folder / "authority.pem"


def _key_path(folder: Path) -> Path:
    return folder / "authority-key.pem"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
