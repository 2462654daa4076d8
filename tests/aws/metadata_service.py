"""A small instance metadata service (IMDSv2) that gives notice when a test says so."""

from __future__ import annotations

import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class MetadataService:
    """One machine's service; `url` goes into AWS_EC2_METADATA_SERVICE_ENDPOINT."""

    def __init__(self, instance: str, address: str) -> None:
        self._values = {"instance-id": instance, "local-ipv4": address}
        self._token = secrets.token_hex(8)
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self._answer(200, service._token)

            def do_GET(self) -> None:
                if self.headers.get("X-aws-ec2-metadata-token") != service._token:
                    self._answer(401, "")
                    return
                value = service._values.get(self.path.removeprefix("/latest/meta-data/"))
                self._answer(404 if value is None else 200, value or "")

            def _answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def give_spot_notice(self) -> None:
        """This machine will be taken away in two minutes."""
        self._values["spot/instance-action"] = '{"action": "terminate", "time": "2030-01-01T00:00:00Z"}'

    def recommend_rebalance(self) -> None:
        """This machine is at a higher risk than others."""
        self._values["events/recommendations/rebalance"] = '{"noticeTime": "2030-01-01T00:00:00Z"}'

    def forget_token(self) -> None:
        """The session's token has ended."""
        self._token = secrets.token_hex(8)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
