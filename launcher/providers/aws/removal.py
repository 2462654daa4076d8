"""Removes what a cluster has in the account, once its nodes are gone. Each step may be repeated."""

from __future__ import annotations

from typing import Any

from finecut.launcher.providers.aws import account, names
from finecut.launcher.providers.aws.api import Api
from finecut.launcher.providers.aws.errors import Kind
from finecut.launcher.providers.aws.names import Names
from finecut.proto import cluster_pb2


def remove_all(api: Api, called: Names, aws: cluster_pb2.Aws) -> bool:
    """In the order in which AWS lets go. False: something is in use still, by interfaces that are being detached.

    Groups and a profile that the job brought are left alone.
    """
    _remove_notices(api, called)
    _remove_parameters(api, called)
    _remove_templates(api, called)
    done = _remove_placement_groups(api, called)
    if not aws.security_group_ids:
        done &= _remove_security_group(api, called)
    if not aws.instance_profile:
        _remove_profile(api, called)
    return done


def _remove_notices(api: Api, called: Names) -> None:
    def gone(service: str, operation: str, **parameters: Any) -> dict[str, Any] | None:
        return api.tolerate(Kind.GONE, service=service, operation=operation, **parameters)

    gone("events", "RemoveTargets", Rule=called.queue, Ids=["queue"])
    gone("events", "DeleteRule", Name=called.queue)
    found = gone("sqs", "GetQueueUrl", QueueName=called.queue)
    if found:
        gone("sqs", "DeleteQueue", QueueUrl=found["QueueUrl"])


def _remove_parameters(api: Api, called: Names) -> None:
    found = api.pages("ssm", "GetParametersByPath", "Parameters", Path=called.parameters, Recursive=True)
    for parameter in found:
        api.tolerate(Kind.GONE, service="ssm", operation="DeleteParameter", Name=parameter["Name"])


def _remove_placement_groups(api: Api, called: Names) -> bool:
    """Names hold the cluster's id, so one list tells what there is."""
    groups = api.call("ec2", "DescribePlacementGroups", Filters=names.filters(called.cluster))["PlacementGroups"]
    return all(
        api.tolerate(Kind.IN_USE, service="ec2", operation="DeletePlacementGroup", GroupName=group["GroupName"])
        is not None
        for group in groups
        if group["State"] in ("available", "pending")
    )


def _remove_templates(api: Api, called: Names) -> None:
    found = api.pages("ec2", "DescribeLaunchTemplates", "LaunchTemplates", Filters=names.filters(called.cluster))
    for template in found:
        api.tolerate(
            Kind.GONE, service="ec2", operation="DeleteLaunchTemplate", LaunchTemplateId=template["LaunchTemplateId"]
        )


def _remove_security_group(api: Api, called: Names) -> bool:
    group = account.find_security_group(api, called)
    if group is None:
        return True
    answer = api.tolerate(Kind.IN_USE, service="ec2", operation="DeleteSecurityGroup", GroupId=group)
    return answer is not None


def _remove_profile(api: Api, called: Names) -> None:
    role = called.role
    gone = (Kind.GONE,)
    api.tolerate(
        *gone, service="iam", operation="RemoveRoleFromInstanceProfile", InstanceProfileName=role, RoleName=role
    )
    api.tolerate(*gone, service="iam", operation="DeleteInstanceProfile", InstanceProfileName=role)
    api.tolerate(*gone, service="iam", operation="DeleteRolePolicy", RoleName=role, PolicyName="finecut")
    api.tolerate(*gone, service="iam", operation="DeleteRole", RoleName=role)
