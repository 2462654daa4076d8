"""EC2 as the reconciler sees it: buys gangs, lists and ends what carries the cluster's tag."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finecut.launcher.providers.aws import fleets, instance_types, names, requests
from finecut.launcher.providers.aws.api import Api
from finecut.launcher.providers.aws.errors import CloudError, Kind
from finecut.launcher.providers.aws.names import Names
from finecut.launcher.providers.aws.requests import Facts
from finecut.launcher.reconcile.reconciler import Instance, NoCapacity, TokenSpent
from finecut.proto import cluster_pb2

_LIVE = ("pending", "running", "stopping", "stopped")


class Ec2:
    """A `Cloud` (see reconciler.py)."""

    def __init__(self, api: Api, cluster: cluster_pb2.Cluster, called: Names, facts: Facts) -> None:
        self._api = api
        self._aws = cluster.aws
        self._groups = {group.name: group for group in cluster.node_groups}
        self._names = called
        self._facts = facts

    def instances(self) -> list[Instance]:
        reservations = self._api.pages(
            "ec2", "DescribeInstances", "Reservations", Filters=names.filters(self._names.cluster)
        )
        return [_instance(entry) for reservation in reservations for entry in reservation["Instances"]]

    def requests(self, group: str, count: int, attempt: int) -> Iterator[tuple[str, dict[str, Any]]]:
        wanted = self._groups[group]
        if wanted.flexible:
            request = fleets.create_fleet(self._names, self._aws, wanted, self._facts, count, attempt)
            yield request["Fleet"]["ClientToken"], request
            return
        for candidate in requests.candidates(self._aws, wanted):
            request = requests.run_instances(self._names, self._aws, wanted, candidate, self._facts, count, attempt)
            yield request["ClientToken"], request

    def summary(self, group: str, request: dict[str, Any]) -> str:
        """A request in a line, such as "train: 2 x p5.48xlarge in subnet-a"."""
        if "Fleet" in request:
            types = ", ".join(self._groups[group].instance_types)
            count = request["Fleet"]["SpotOptions"]["MinTargetCapacity"]
            return f"{group}: {count} x one of {types} in one of {', '.join(self._aws.subnet_ids)}"
        place = request["NetworkInterfaces"][0]["SubnetId"]
        return f"{group}: {request['MinCount']} x {request['InstanceType']} in {place}"

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
            return fleets.send(self._api, self._names, request)
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
