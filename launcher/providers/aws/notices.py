"""EC2's notices as EventBridge puts them into the cluster's queue. Best effort: instances are looked at too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finecut.launcher.providers.aws.api import Api

# Spot instances are taken back two minutes after the warning.
_SPOT_S = 120.0
_BLOCK_S = 600.0


@dataclass(frozen=True)
class Notice:
    """An instance that goes away in `seconds`."""

    instance: str
    reason: str
    seconds: float


def receive(api: Api, queue: str) -> list[Notice]:
    """Takes what is in the queue. A message that is no notice is dropped."""
    messages = api.call("sqs", "ReceiveMessage", QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
    found = []
    for message in messages:
        found += list(parse(message["Body"]))
        api.call("sqs", "DeleteMessage", QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    return found


def parse(body: str) -> Iterator[Notice]:
    """Notices in one message of EventBridge."""
    try:
        event: dict[str, Any] = json.loads(body)
        kind, detail = event["detail-type"], event["detail"]
        instance = detail["instance-id"]
    except (ValueError, KeyError, TypeError):
        return
    match kind:
        case "EC2 Spot Instance Interruption Warning":
            yield Notice(instance, "spot interruption", _SPOT_S)
        case "EC2 Instance Rebalance Recommendation":
            yield Notice(instance, "rebalance recommendation", _SPOT_S)
        case "EC2 Capacity Block Reservation Expiration Warning":
            yield Notice(instance, "capacity block ends", _BLOCK_S)
