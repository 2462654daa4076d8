"""Flexible gangs of spot nodes: one CreateFleet asks for every type in every zone, and EC2 chooses one pair for all.

    launch templates, one a type (user data and network cards differ) -> CreateFleet, instant -> all nodes or none

EC2 takes the pool that is least likely to be interrupted, and among such the job's order of preference. Pure:
fleet_launch.py sends the requests in the order above; templates go when the cluster is released.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from finecut.launcher.providers.aws import names, requests
from finecut.launcher.providers.aws.names import Names
from finecut.launcher.providers.aws.requests import Candidate, Facts
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
