"""EC2's instance metadata service, version 2: who this machine is, and whether it will be taken away."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

_DEFAULT = "http://169.254.169.254"
_TOKEN_S = 21600
_TIMEOUT_S = 2.0


class Metadata:
    """The service at AWS_EC2_METADATA_SERVICE_ENDPOINT, as in AWS's own tools, or at its usual address."""

    def __init__(self) -> None:
        self._endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", _DEFAULT).rstrip("/")
        self._token = ""
        self._token_at = 0.0

    def get(self, path: str) -> str | None:
        """The value at `path` below /latest/meta-data/; None: there is none (404).

        Raises:
          OSError: The service does not answer.
        """
        headers = {"X-aws-ec2-metadata-token": self._session()}
        try:
            return self._open(urllib.request.Request(f"{self._endpoint}/latest/meta-data/{path}", headers=headers))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            if error.code == 401:  # the token has ended; the next call gets another
                self._token = ""
            raise

    def _session(self) -> str:
        if not self._token or time.monotonic() - self._token_at > _TOKEN_S / 2:
            request = urllib.request.Request(
                f"{self._endpoint}/latest/api/token",
                method="PUT",
                headers={"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)},
            )
            self._token, self._token_at = self._open(request), time.monotonic()
        return self._token

    def _open(self, request: urllib.request.Request) -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            return str(answer.read().decode())


@dataclass(frozen=True)
class Departure:
    """Why this machine goes away."""

    reason: str


def departure(metadata: Metadata) -> Departure | None:
    """What the service says now. Silence means no notice: a service that is down takes no machine away."""
    try:
        if metadata.get("spot/instance-action") is not None:
            return Departure("spot interruption")
        if metadata.get("events/recommendations/rebalance") is not None:
            return Departure("rebalance recommendation")
    except OSError:
        return None
    return None
