"""The deploy stage's way to an endpoint on this machine: what it is, and the change to another version."""

from __future__ import annotations

import dataclasses
import http.client
import json
import socket
import ssl
import urllib.error
import urllib.request
from typing import Any

from finecut.proto.config import UserError
from finecut.trainer.serving import authentication

CONNECTION_LOST = (urllib.error.URLError, http.client.HTTPException, OSError)
_ANSWER_S = 60.0  # an endpoint that changes versions on a busy machine may take a while
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclasses.dataclass(frozen=True)
class Control:
    """Where an endpoint listens, and what it takes to be heard there."""

    host: str
    port: int
    key: str = ""
    # Of the endpoint, in PEM; "" without TLS.
    certificate: str = ""

    @property
    def address(self) -> str:
        """Such as "http://127.0.0.1:8000", as this machine reaches it."""
        host = _ANYWHERE.get(self.host, self.host)
        bracketed = f"[{host}]" if ":" in host else host
        return f"{'https' if self.certificate else 'http'}://{bracketed}:{self.port}"

    def find(self, name: str) -> dict[str, Any] | None:
        """The endpoint's status, None where nobody listens. Raises UserError where somebody else does."""
        try:
            socket.create_connection((_ANYWHERE.get(self.host, self.host), self.port), timeout=5).close()
        except OSError:
            return None
        try:
            status = self.status()
        except urllib.error.HTTPError as error:
            status = {}
            if error.code == http.HTTPStatus.UNAUTHORIZED:
                raise UserError(
                    f"deploy.api_key: what listens on port {self.port} wants another key; give the one that it was"
                    " started with, or choose another port"
                ) from None
        except (*CONNECTION_LOST, ValueError):
            status = {}
        if status.get("endpoint") != name:
            owner = f"endpoint {status['endpoint']!r}" if "endpoint" in status else "another program"
            raise UserError(f"deploy.port: port {self.port} is in use by {owner}; choose another, or end that one")
        return status

    def status(self) -> dict[str, Any]:
        """What the endpoint says of itself. Raises one of CONNECTION_LOST."""
        with self._open("status", None) as response:
            return json.load(response)

    def begin(self, change: dict[str, Any]) -> None:
        """Begins a change of versions. Raises UserError where it is refused."""
        try:
            self._open("versions", json.dumps(change).encode()).close()
        except urllib.error.HTTPError as error:
            raise UserError(f"the endpoint refused: {json.load(error)['error']['message']}") from None

    def _open(self, path: str, body: bytes | None) -> Any:
        request = urllib.request.Request(f"{self.address}/finecut/{path}", body)
        request.add_header("Content-Type", "application/json")
        if self.key:
            request.add_header("Authorization", f"Bearer {self.key}")
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self.certificate:
            handlers.append(urllib.request.HTTPSHandler(context=self._tls()))
        return urllib.request.build_opener(*handlers).open(request, timeout=_ANSWER_S)

    def _tls(self) -> ssl.SSLContext:
        context = authentication.own_tls(self.certificate)
        assert context
        return context
