"""Flexible gangs of spot nodes: one CreateFleet asks for every type in every zone, and EC2 chooses one pair for all.

    launch templates, one a type (user data and network cards differ) -> CreateFleet, instant -> all nodes or none

EC2 takes the pool that is least likely to be interrupted, and among such the job's order of preference. Requests are
made here, and sent in the order above; templates go when the cluster is released.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

from finecut.launcher.providers.aws import errors, names, requests
from finecut.launcher.providers.aws.api import Api
from finecut.launcher.providers.aws.errors import CloudError, Kind
from finecut.launcher.providers.aws.names import Names
from finecut.launcher.providers.aws.requests import Candidate, Facts
from finecut.launcher.reconcile.reconciler import Instance, NoCapacity
from finecut.proto import cluster_pb2

Json = dict[str, Any]
# Of RunInstances alone: a fleet says how many, at which price and where.
_NOT_IN_TEMPLATES = ("ClientToken", "MinCount", "MaxCount", "InstanceMarketOptions", "Placement", "TagSpecifications")


def create_fleet(
    called: Names, aws: cluster_pb2.Aws, group: cluster_pb2.NodeGroup, facts: Facts, count: int, attempt: int
) -> Json:
    """{"Templates": {name: LaunchTemplateData}, "Fleet": a whole CreateFleet request} for `count` nodes or none."""
    candidates = requests.candidates(aws, group)
    token = names.client_token(called.cluster, group.name, "fleet", ",".join(group.instance_types), attempt)
    templates: dict[str, Json] = {}
    configs = []
    for name in dict.fromkeys(candidate.instance_type for candidate in candidates):
        data = _template(called, aws, group, Candidate(aws.subnet_ids[0], name), facts)
        called_template = called.template(name, hashlib.sha256(json.dumps(data).encode()).hexdigest()[:8])
        templates[called_template] = data
        overrides = [
            _override(called, group, candidate, priority)
            for priority, candidate in enumerate(candidates)
            if candidate.instance_type == name
        ]
        specification = {"LaunchTemplateName": called_template, "Version": "1"}
        configs.append({"LaunchTemplateSpecification": specification, "Overrides": overrides})
    fleet = {
        "ClientToken": token,
        "Type": "instant",
        "TargetCapacitySpecification": {"TotalTargetCapacity": count, "DefaultTargetCapacityType": "spot"},
        "SpotOptions": {
            "AllocationStrategy": "capacity-optimized-prioritized",
            "InstanceInterruptionBehavior": "terminate",
            "SingleInstanceType": True,
            "SingleAvailabilityZone": True,
            "MinTargetCapacity": count,
        },
        "LaunchTemplateConfigs": configs,
        "TagSpecifications": [{"ResourceType": "instance", "Tags": requests.tags(called, group, token)}],
    }
    return {"Templates": templates, "Fleet": fleet}


def placement_groups(fleet: Json) -> list[str]:
    """Names that a fleet's overrides place nodes in."""
    overrides = [override for config in fleet["LaunchTemplateConfigs"] for override in config["Overrides"]]
    return sorted({override["Placement"]["GroupName"] for override in overrides if "Placement" in override})


def send(api: Api, called: Names, request: Json, clock: Callable[[], float] = time.time) -> list[Instance]:
    """Sends what `create_fleet` made. Sent again, it gives the same nodes.

    Raises:
      NoCapacity: No pair of type and zone has room for all.
      CloudError: Another refusal.
    """
    for name, data in request["Templates"].items():
        tags = [{"ResourceType": "launch-template", "Tags": called.tags()}]
        api.tolerate(
            Kind.EXISTS,
            service="ec2",
            operation="CreateLaunchTemplate",
            LaunchTemplateName=name,
            LaunchTemplateData=data,
            TagSpecifications=tags,
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


def _template(
    called: Names, aws: cluster_pb2.Aws, group: cluster_pb2.NodeGroup, candidate: Candidate, facts: Facts
) -> Json:
    """What RunInstances would say of one type, less what differs by zone and attempt."""
    request = requests.run_instances(called, aws, group, candidate, facts, count=1, attempt=1)
    data = {key: value for key, value in request.items() if key not in _NOT_IN_TEMPLATES}
    data["UserData"] = base64.b64encode(request["UserData"].encode()).decode()  # only RunInstances does it by itself
    data["NetworkInterfaces"] = [
        {key: value for key, value in interface.items() if key != "SubnetId"}
        for interface in request["NetworkInterfaces"]
    ]
    data["TagSpecifications"] = [
        {"ResourceType": kind, "Tags": called.tags(group=group.name)} for kind in ("volume", "network-interface")
    ]
    return data


def _override(called: Names, group: cluster_pb2.NodeGroup, candidate: Candidate, priority: int) -> Json:
    override: Json = {
        "InstanceType": candidate.instance_type,
        "SubnetId": candidate.subnet,
        "Priority": float(priority),
    }
    if requests.has_placement_group(group):
        override["Placement"] = {"GroupName": called.placement_group(group.name, candidate.subnet)}
    return override


def _refusal(refused: list[Json]) -> Exception:
    """An instant fleet that got nothing has no error of its own, but one for each pair that it tried."""
    kinds = {error["ErrorCode"]: errors.kind_of(error["ErrorCode"]) for error in refused}
    others = [code for code, kind in kinds.items() if kind is not Kind.CAPACITY]
    if not others:
        return NoCapacity(f"no type in no zone: {', '.join(sorted(kinds)) or 'EC2 names no reason'}")
    first = next(error for error in refused if error["ErrorCode"] == others[0])
    return CloudError(kinds[others[0]], others[0], f"ec2:CreateFleet: {others[0]}: {first.get('ErrorMessage', '')}")
