"""EC2 as the reconciler sees it: buys gangs, lists and ends what carries the cluster's tag."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finecut.launcher.providers.aws import fleet_launch, fleets, instance_types, names
from finecut.launcher.providers.aws.api import Api
from finecut.launcher.providers.aws.errors import CloudError, Kind
from finecut.launcher.providers.aws.names import Names
from finecut.launcher.providers.aws.purchases import Purchases
from finecut.launcher.providers.aws.requests import Facts
from finecut.launcher.reconcile.reconciler import Instance, NoCapacity, TokenSpent
from finecut.proto import cluster_pb2

_LIVE = ("pending", "running", "stopping", "stopped")


class Ec2:
    """A `Cloud` (see reconciler.py)."""

    def __init__(self, api: Api, cluster: cluster_pb2.Cluster, called: Names, facts: Facts) -> None:
        self._api = api
        self._aws = cluster.aws
        self._names = called
        self._purchases = Purchases(cluster, called, facts)

    def instances(self) -> list[Instance]:
        reservations = self._api.pages(
            "ec2", "DescribeInstances", "Reservations", Filters=names.filters(self._names.cluster)
        )
        return [_instance(entry) for reservation in reservations for entry in reservation["Instances"]]

    def requests(self, group: str, count: int, attempt: int) -> Iterator[tuple[str, dict[str, Any]]]:
        return self._purchases.requests(group, count, attempt)

    def summary(self, group: str, request: dict[str, Any]) -> str:
        return self._purchases.summary(group, request)

    def launch(self, request: dict[str, Any]) -> list[Instance]:
        if "Fleet" in request:
            return self._launch_fleet(request)
        if "Placement" in request:
            self._ensure_placement_group(request["Placement"]["GroupName"])
        try:
            answer = self._api.call("ec2", "RunInstances", **request)
        except CloudError as error:
            place = f"{request['InstanceType']} in {request['NetworkInterfaces'][0]['SubnetId']}"
            if error.kind is Kind.CAPACITY:
                raise NoCapacity(f"{place}: {error.code}") from error
            if error.kind is Kind.TOKEN_SPENT:
                raise TokenSpent(f"{place}: {error.code}") from error
            raise
        return [_instance(entry) for entry in answer["Instances"]]

    def _launch_fleet(self, request: dict[str, Any]) -> list[Instance]:
        for name in fleets.placement_groups(request["Fleet"]):
            self._ensure_placement_group(name)
        try:
            return fleet_launch.send(self._api, self._names, request)
        except CloudError as error:
            if error.kind is Kind.TOKEN_SPENT:
                raise TokenSpent(f"fleet: {error.code}") from error
            raise

    def terminate(self, instances: list[str]) -> None:
        for instance in instances:  # one by one: a single id that is gone would fail them all
            self._api.tolerate(Kind.GONE, service="ec2", operation="TerminateInstances", InstanceIds=[instance])

    def usd_per_hour(self, instance_type: str) -> float:
        return instance_types.price(instance_type, self._aws) or 0.0

    def _ensure_placement_group(self, name: str) -> None:
        tags = [{"ResourceType": "placement-group", "Tags": self._names.tags()}]
        self._api.tolerate(
            Kind.EXISTS,
            service="ec2",
            operation="CreatePlacementGroup",
            GroupName=name,
            Strategy="cluster",
            TagSpecifications=tags,
        )


def _instance(entry: dict[str, Any]) -> Instance:
    tags = {tag["Key"]: tag["Value"] for tag in entry.get("Tags", [])}
    return Instance(
        id=entry["InstanceId"],
        token=tags.get(names.TOKEN_TAG, ""),
        group=tags.get(names.GROUP_TAG, ""),
        address=entry.get("PrivateIpAddress", ""),
        instance_type=entry["InstanceType"],
        is_live=entry["State"]["Name"] in _LIVE,
        started_at=entry["LaunchTime"].timestamp(),
        zone=entry.get("Placement", {}).get("AvailabilityZone", ""),
        market=tags.get(names.MARKET_TAG, ""),
    )
