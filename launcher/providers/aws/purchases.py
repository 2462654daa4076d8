"""What is asked of EC2 for a group of nodes, in order of preference. Pure: `plan` prints it, ec2.py sends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finecut.launcher.providers.aws import fleets, requests
from finecut.launcher.providers.aws.names import Names
from finecut.launcher.providers.aws.requests import Facts
from finecut.proto import cluster_pb2


class Purchases:
    """The requests of one cluster."""

    def __init__(self, cluster: cluster_pb2.Cluster, called: Names, facts: Facts) -> None:
        self._aws = cluster.aws
        self._groups = {group.name: group for group in cluster.node_groups}
        self._names = called
        self._facts = facts

    def requests(self, group: str, count: int, attempt: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Client token and request of each try for `count` nodes or none."""
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
