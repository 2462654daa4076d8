"""Who may use an endpoint: whoever has its key; who may change its versions: whoever has it, on the same machine."""

from __future__ import annotations

import hmac
import os
import ssl
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from finecut.proto.config import UserError
from finecut.trainer.serving.proxy import error_response

_LEAST_KEY = 16


def read_key(file: str, variable: str) -> str:
    """The key in a file, or in an environment variable; "" where neither is named. Raises UserError."""
    if not file and not variable:
        return ""
    where = f"api_key.file: {file}" if file else f"api_key.environment_variable: {variable}"
    try:
        key = Path(file).read_text(encoding="utf-8").strip() if file else os.environ.get(variable, "").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"deploy.{where} cannot be read: {error}") from None
    if len(key) < _LEAST_KEY or not key.isascii():
        raise UserError(f"deploy.{where} holds {len(key)} characters; write a key of at least {_LEAST_KEY}, in ASCII")
    return key


def middleware(key: str) -> Middleware:
    """Refuses requests without the key ("": none is asked for), and changes of versions from other machines."""

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/health":
            return await handler(request)
        given = request.headers.get("Authorization", "").encode(errors="replace")
        if key and not hmac.compare_digest(given, f"Bearer {key}".encode()):
            return error_response(401, "the API key is missing or wrong; send it as a bearer token")
        if request.path.startswith("/finecut/") and not _is_local(request):
            return error_response(403, "versions are changed from the endpoint's own machine only")
        return await handler(request)

    return authenticate


def server_tls(certificate: str, private_key: str) -> ssl.SSLContext | None:
    """Of a listening endpoint; None without a certificate. Raises UserError."""
    if not certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, private_key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"deploy.tls: {certificate} and {private_key} are no certificate and its key: {error}"
        ) from None
    return context


def own_tls(certificate: str) -> ssl.SSLContext | None:
    """For asking the endpoint on this machine, whatever name its certificate has: exactly this one is trusted."""
    if not certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    return context


def _is_local(request: web.Request) -> bool:
    assert request.transport is not None
    peer, own = (request.transport.get_extra_info(name)[0] for name in ("peername", "sockname"))
    return peer == own or peer in ("127.0.0.1", "::1")
