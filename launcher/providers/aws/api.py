"""The one door to AWS: every call goes through `Api.call`, which tries again what may be tried again, and no more."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from finecut.launcher.providers.aws import errors
from finecut.launcher.providers.aws.errors import CloudError, Kind
from finecut.proto.config import UserError

_MOST_TRIES = 8
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 20.0
# botocore's own tries would hide a lack of capacity, which EC2 reports as a server's error (HTTP 500).
_ONE_TRY = {"total_max_attempts": 1}
logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells of each client and endpoint


class Api:
    """Clients of one region.

    Args:
      crash_point: Called before and after each call; tests end the launcher there.
      sleep: Waits between tries.
    """

    def __init__(
        self,
        region: str,
        session: boto3.Session | None = None,
        crash_point: Callable[[str], None] = lambda name: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.region = region
        self._session = session or boto3.Session()
        self._crash_point = crash_point
        self._sleep = sleep
        self._clients: dict[str, Any] = {}

    def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        """Calls, for example, call("ec2", "RunInstances", ...).

        Throttled calls and lost replies are tried again with full jitter, with the same parameters: what changes
        something carries a token, or may be done twice.

        Raises:
          CloudError: For good, or after the last try.
        """
        for number in range(1, _MOST_TRIES + 1):
            try:
                return self._send(service, operation, parameters)
            except (ClientError, BotoCoreError, ResponseParserError) as error:
                kind, _ = errors.classify(error)
                if kind not in (Kind.THROTTLED, Kind.LOST) or number == _MOST_TRIES:
                    raise errors.explain(error, service, operation) from error
                longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (number - 1))
                self._sleep(random.uniform(0, longest))
        raise AssertionError("the last try returns or raises")

    def tolerate(self, *kinds: Kind, service: str, operation: str, **parameters: Any) -> dict[str, Any] | None:
        """As `call`; None where it fails in one of these ways, which then count as done."""
        try:
            return self.call(service, operation, **parameters)
        except CloudError as error:
            if error.kind in kinds:
                return None
            raise

    def pages(self, service: str, operation: str, key: str, **parameters: Any) -> list[Any]:
        """The items under `key` of all pages."""
        items: list[Any] = []
        token: dict[str, Any] = {}
        while True:
            page = self.call(service, operation, **parameters, **token)
            items += page.get(key, [])
            if not page.get("NextToken"):
                return items
            token = {"NextToken": page["NextToken"]}

    def _send(self, service: str, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        client = self._client(service)
        method = client.meta.method_to_api_mapping
        name = next(python for python, api in method.items() if api == operation)
        self._crash_point(f"before {operation}")
        answer: dict[str, Any] = getattr(client, name)(**parameters)
        self._crash_point(f"after {operation}")
        return answer

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            config = Config(retries=_ONE_TRY, connect_timeout=10, read_timeout=60)
            try:
                self._clients[service] = self._session.client(service, region_name=self.region, config=config)
            except (BotoCoreError, ValueError) as error:
                raise UserError(f"cluster.aws.region: {self.region!r} cannot be used ({error})") from None
        return self._clients[service]
