"""Opaque positions in a list: the number of the last job seen, bound to the question that was asked."""

import base64
import binascii
import hashlib
import struct

from finecut.proto.config import ConfigError, Problem

_FORMAT = struct.Struct(">Q8s")


def encode(number: int, question: str) -> str:
    """The token for what comes after job `number`."""
    return base64.urlsafe_b64encode(_FORMAT.pack(number, _check(number, question))).decode()


def decode(token: str, question: str) -> int | None:
    """The number that `encode` was given; None for the first page.

    Raises:
      ConfigError: Not a token, or one of another question.
    """
    if not token:
        return None
    try:
        number, check = _FORMAT.unpack(base64.b64decode(token.encode(), altchars=b"-_", validate=True))
    except (binascii.Error, struct.error, ValueError):
        number, check = 0, b""
    if check != _check(number, question):
        raise ConfigError(
            [Problem("page_token", "is not the next_page_token of a call with the same filter; start without one")]
        )
    return int(number)


def _check(number: int, question: str) -> bytes:
    return hashlib.sha256(f"{number} {question}".encode()).digest()[:8]
