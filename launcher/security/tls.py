"""gRPC credentials from a folder with certificate.pem, key.pem and authority.pem (see authority.Certificate.write)."""

import logging
import threading
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from finecut.proto.config import UserError

_log = logging.getLogger("finecut.service")


class _Files:
    """The three files, read again when certificate.pem has changed, which is written last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._stamp = self._read_stamp()
        self.current = read(folder)

    def changed(self) -> "tuple[bytes, bytes, bytes] | None":
        """The files if they are new since the last call; None while they are the same or cannot be used."""
        with self._lock:
            try:
                stamp = self._read_stamp()
                if stamp == self._stamp:
                    return None
                self.current = read(self._folder)
            except (UserError, OSError) as error:
                _log.error("new certificates are not used: %s", error)
                return None
            self._stamp = stamp
            _log.info("certificates were read again")
            return self.current

    def _read_stamp(self) -> tuple[int, int]:
        try:
            status = (self._folder / "certificate.pem").stat()
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
        return status.st_mtime_ns, status.st_ino


def read(folder: Path) -> tuple[bytes, bytes, bytes]:
    """Certificate, key and trusted authorities.

    Raises:
      UserError: A file is missing or damaged, others may read the key, or it is not the certificate's.
    """
    try:
        certificate, key, trusted = (
            (folder / name).read_bytes() for name in ("certificate.pem", "key.pem", "authority.pem")
        )
        mode = (folder / "key.pem").stat().st_mode
        loaded = x509.load_pem_x509_certificate(certificate)
        x509.load_pem_x509_certificates(trusted)
        matches = serialization.load_pem_private_key(key, password=None).public_key() == loaded.public_key()
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"the certificates in {folder} cannot be used: {error}") from None
    if mode & 0o077:
        raise UserError(f"{folder / 'key.pem'} can be read by others; chmod 600 it")
    if not matches:
        raise UserError(f"{folder / 'key.pem'} is not the key of certificate.pem; restore both together")
    return certificate, key, trusted


def server_credentials(folder: Path) -> grpc.ServerCredentials:
    """Mutual TLS; each new connection uses the files as they are then. Raises UserError."""
    files = _Files(folder)

    def fetch() -> "grpc.ServerCertificateConfiguration | None":
        found = files.changed()
        return _configuration(*found) if found else None

    return grpc.dynamic_ssl_server_credentials(
        _configuration(*files.current), fetch, require_client_authentication=True
    )


def client_credentials(folder: Path) -> grpc.ChannelCredentials:
    """Mutual TLS, as the holder of the folder's certificate. Raises UserError."""
    certificate, key, trusted = read(folder)
    return grpc.ssl_channel_credentials(root_certificates=trusted, private_key=key, certificate_chain=certificate)


def _configuration(certificate: bytes, key: bytes, trusted: bytes) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=trusted)
