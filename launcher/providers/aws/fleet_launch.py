"""Sends what fleets.py has made."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from finecut.launcher.providers.aws import errors, names
from finecut.launcher.providers.aws.api import Api
from finecut.launcher.providers.aws.errors import CloudError, Kind
from finecut.launcher.providers.aws.names import Names
from finecut.launcher.reconcile.reconciler import Instance, NoCapacity

Json = dict[str, Any]


def send(api: Api, called: Names, request: Json, clock: Callable[[], float] = time.time) -> list[Instance]:
    """Sends what `fleets.create_fleet` made. Sent again, it gives the same nodes.

    Raises:
      NoCapacity: No pair of type and zone has room for all.
      CloudError: Another refusal.
    """
    for name, data in request["Templates"].items():
        marked = [{"ResourceType": "launch-template", "Tags": called.tags()}]
        api.tolerate(
            Kind.EXISTS,
            service="ec2",
            operation="CreateLaunchTemplate",
            LaunchTemplateName=name,
            LaunchTemplateData=data,
            TagSpecifications=marked,
        )
    fleet = request["Fleet"]
    answer = api.call("ec2", "CreateFleet", **fleet)
    tags = {tag["Key"]: tag["Value"] for tag in fleet["TagSpecifications"][0]["Tags"]}
    found = [
        Instance(
            id=instance,
            token=fleet["ClientToken"],
            group=tags[names.GROUP_TAG],
            address="",  # the next look tells
            instance_type=entry["InstanceType"],
            is_live=True,
            started_at=clock(),
            market=tags[names.MARKET_TAG],
        )
        for entry in answer.get("Instances", [])
        for instance in entry["InstanceIds"]
    ]
    if not found:
        raise _refusal(answer.get("Errors", []))
    return found


def _refusal(refused: list[Json]) -> Exception:
    """An instant fleet that got nothing has no error of its own, but one for each pair that it tried."""
    kinds = {error["ErrorCode"]: errors.kind_of(error["ErrorCode"]) for error in refused}
    others = [code for code, kind in kinds.items() if kind is not Kind.CAPACITY]
    if not others:
        return NoCapacity(f"no type in no zone: {', '.join(sorted(kinds)) or 'EC2 names no reason'}")
    first = next(error for error in refused if error["ErrorCode"] == others[0])
    return CloudError(kinds[others[0]], others[0], f"ec2:CreateFleet: {others[0]}: {first.get('ErrorMessage', '')}")
