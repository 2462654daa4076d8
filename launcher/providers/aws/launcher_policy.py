"""What the launcher's own credentials must be allowed for one job: the actions that it uses, and no other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from finecut.launcher.providers.aws import requests
from finecut.launcher.providers.aws.names import IMAGE_PARAMETER, Names
from finecut.proto import job_pb2

Json = dict[str, Any]

_EC2 = """RunInstances TerminateInstances CreateTags DescribeInstances DescribeInstanceTypeOfferings DescribeSubnets
    DescribePlacementGroups DescribeSecurityGroups DescribeLaunchTemplates"""
_EC2_GROUP = """CreateSecurityGroup DeleteSecurityGroup AuthorizeSecurityGroupIngress AuthorizeSecurityGroupEgress"""
_EC2_PLACEMENT = "CreatePlacementGroup DeletePlacementGroup"
_EC2_FLEET = "CreateFleet CreateLaunchTemplate DeleteLaunchTemplate"
_ROLE = "CreateRole PutRolePolicy DeleteRolePolicy DeleteRole PassRole"
_PROFILE = """CreateInstanceProfile DeleteInstanceProfile AddRoleToInstanceProfile RemoveRoleFromInstanceProfile"""
_NOTICES = {
    "sqs": """CreateQueue DeleteQueue GetQueueAttributes SetQueueAttributes GetQueueUrl ReceiveMessage DeleteMessage
        TagQueue""",
    "events": "PutRule DeleteRule PutTargets RemoveTargets TagResource",
}


def of_launcher(job: job_pb2.JobConfig, names: Names, number: str) -> Json:
    """What the credentials that start the job need. Actions that this job does not use are not in it."""
    aws, groups = job.cluster.aws, job.cluster.node_groups
    actions = _EC2.split()
    actions += [] if aws.security_group_ids else _EC2_GROUP.split()
    actions += _EC2_PLACEMENT.split() if any(requests.has_placement_group(group) for group in groups) else []
    actions += _EC2_FLEET.split() if any(group.flexible for group in groups) else []
    arn = f":aws:{{}}:{aws.region}:{number}:"
    parameters = f"arn{arn.format('ssm')}parameter"
    image = aws.ami_parameter or IMAGE_PARAMETER
    of_image = (
        f"{parameters}{image}" if not image.startswith("/aws/") else f"arn:aws:ssm:{aws.region}::parameter{image}"
    )
    own = ["GetParametersByPath", "PutParameter", "DeleteParameter"]
    statements = [
        _allow("Machines", "ec2", actions, "*"),
        _allow("Image", "ssm", ["GetParameter"], of_image),
        _allow("Secrets", "ssm", own, f"{parameters}{names.parameters}", f"{parameters}{names.parameters}/*"),
        _allow("Account", "sts", ["GetCallerIdentity"], "*"),
        _allow("Queue", "sqs", _NOTICES["sqs"].split(), f"arn{arn.format('sqs')}{names.queue}"),
        _allow("Rule", "events", _NOTICES["events"].split(), f"arn{arn.format('events')}rule/{names.queue}"),
    ]
    if aws.instance_profile:
        statements.append(_allow("Role", "iam", ["PassRole"], f"arn:aws:iam::{number}:role/*"))
    else:
        places = [f"arn:aws:iam::{number}:{kind}/{names.role}" for kind in ("role", "instance-profile")]
        statements.append(_allow("Role", "iam", [*_ROLE.split(), *_PROFILE.split(), "TagRole"], *places))
    return {"Version": "2012-10-17", "Statement": statements}


def _allow(sid: str, service: str, actions: Iterable[str], *resources: str) -> Json:
    return {
        "Sid": sid,
        "Effect": "Allow",
        "Action": sorted(f"{service}:{action}" for action in actions),
        "Resource": list(resources),
    }
