"""The requests that buy a gang of nodes, as EC2 takes them. Pure: nothing is sent from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finecut.launcher.providers.aws import user_data
from finecut.launcher.providers.aws.instance_types import BY_NAME
from finecut.launcher.providers.aws.names import Names, client_token
from finecut.proto import cluster_pb2

Json = dict[str, Any]
_Market = cluster_pb2.NodeGroup.Market


@dataclass(frozen=True)
class Candidate:
    """One place to ask. Types come before zones: a job prefers its first type in any zone to its second."""

    subnet: str
    instance_type: str


@dataclass(frozen=True)
class Facts:
    """What is looked up once and pinned for the cluster's life; before that, what `plan` prints in its place."""

    image: str
    security_groups: tuple[str, ...]
    instance_profile: str


def candidates(aws: cluster_pb2.Aws, group: cluster_pb2.NodeGroup) -> list[Candidate]:
    """Where to ask for a group's nodes, in order of preference."""
    return [Candidate(subnet, name) for name in group.instance_types for subnet in aws.subnet_ids]


def has_placement_group(group: cluster_pb2.NodeGroup) -> bool:
    """Reserved capacity is placed already; a group of its own for it would often find no room."""
    if group.HasField("placement_group"):
        return group.placement_group
    return group.node_count > 1 and group.market in (_Market.ON_DEMAND, _Market.SPOT)


def run_instances(
    names: Names,
    aws: cluster_pb2.Aws,
    group: cluster_pb2.NodeGroup,
    candidate: Candidate,
    facts: Facts,
    count: int,
    attempt: int,
) -> Json:
    """A whole RunInstances request for `count` nodes or none."""
    token = client_token(names.cluster, group.name, candidate.subnet, candidate.instance_type, attempt)
    request: Json = {
        "ClientToken": token,
        "MinCount": count,
        "MaxCount": count,
        "ImageId": facts.image,
        "InstanceType": candidate.instance_type,
        "NetworkInterfaces": _interfaces(aws, candidate, facts),
        "IamInstanceProfile": {"Name": facts.instance_profile},
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": _volume(aws, group)}],
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled"},
        "InstanceInitiatedShutdownBehavior": "terminate",
        "UserData": user_data.script(names, aws, BY_NAME[candidate.instance_type], group.role),
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": tags(names, group, token)}
            for kind in ("instance", "volume", "network-interface")
        ],
    }
    if has_placement_group(group):
        request["Placement"] = {"GroupName": names.placement_group(group.name, candidate.subnet)}
    return request | _market(group)


def tags(names: Names, group: cluster_pb2.NodeGroup, token: str) -> list[dict[str, str]]:
    """What an instance is known by."""
    return names.tags(group=group.name, token=token, market=_Market.Name(group.market))


def redacted(request: Json) -> Json:
    """A request for people: its user data, which is no secret but long, by its size."""

    def shown(value: Any, key: str = "") -> Any:
        if key == "UserData":
            return f"({len(value)} characters)"
        if isinstance(value, dict):
            return {name: shown(inner, name) for name, inner in value.items()}
        return [shown(inner) for inner in value] if isinstance(value, list) else value

    redacted: Json = shown(request)
    return redacted


def _interfaces(aws: cluster_pb2.Aws, candidate: Candidate, facts: Facts) -> list[Json]:
    """Card 0 carries IP (and EFA where there is one); each further card carries EFA alone. The table decides."""
    kind = BY_NAME[candidate.instance_type]
    first = _interface(candidate, facts, card=0, device=0, kind="efa" if kind.efa_cards else "interface")
    others = [
        _interface(candidate, facts, card, device=aws.efa_device_index, kind="efa-only")
        for card in range(1, kind.efa_cards)
    ]
    return [first, *others]


def _interface(candidate: Candidate, facts: Facts, card: int, device: int, kind: str) -> Json:
    return {
        "NetworkCardIndex": card,
        "DeviceIndex": device,
        "InterfaceType": kind,
        "SubnetId": candidate.subnet,
        "Groups": list(facts.security_groups),
        "DeleteOnTermination": True,
    }


def _volume(aws: cluster_pb2.Aws, group: cluster_pb2.NodeGroup) -> Json:
    volume: Json = {
        "VolumeType": "gp3",
        "VolumeSize": group.volume_gib,
        "Encrypted": True,
        "DeleteOnTermination": True,
    }
    return volume | ({"KmsKeyId": aws.kms_key} if aws.HasField("kms_key") else {})


def _market(group: cluster_pb2.NodeGroup) -> Json:
    target = {
        "CapacityReservationSpecification": {
            "CapacityReservationTarget": {"CapacityReservationId": group.reservation_id}
        }
    }
    match group.market:
        case _Market.SPOT:
            options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
            return {"InstanceMarketOptions": {"MarketType": "spot", "SpotOptions": options}}
        case _Market.CAPACITY_BLOCK:
            return {"InstanceMarketOptions": {"MarketType": "capacity-block"}} | target
        case _Market.RESERVATION:
            return target
        case _:
            return {}
