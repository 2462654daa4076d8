"""What a cluster needs in the account besides nodes: security group, role and profile, image, notices. All of its own.

Everything is made if it is not there, so that each function may be called again after a crash in it.
"""

from __future__ import annotations

import json
from typing import Any

from finecut.launcher.providers.aws import policy
from finecut.launcher.providers.aws.api import Api
from finecut.launcher.providers.aws.errors import CloudError, Kind
from finecut.launcher.providers.aws.instance_types import BY_NAME
from finecut.launcher.providers.aws.names import IMAGE_PARAMETER, Names
from finecut.proto import cluster_pb2, job_pb2
from finecut.proto.config import UserError


def find_image(api: Api, aws: cluster_pb2.Aws) -> str:
    """The id of the machine image now. The caller pins it: a cluster never mixes two images."""
    name = aws.ami_parameter or IMAGE_PARAMETER
    try:
        return str(api.call("ssm", "GetParameter", Name=name)["Parameter"]["Value"])
    except CloudError as error:
        if error.kind is Kind.GONE:
            raise UserError(
                f"cluster.aws.ami_parameter: {aws.region} has no SSM parameter {name!r}; name one that holds an"
                " image's id"
            ) from error
        raise


def account_number(api: Api) -> str:
    return str(api.call("sts", "GetCallerIdentity")["Account"])


def check_offerings(api: Api, cluster: cluster_pb2.Cluster) -> str:
    """Refuses types that none of the subnets' zones offers; returns the subnets' VPC.

    Raises:
      UserError: Naming the zones of the region that do have the type, if any.
    """
    subnets = api.call("ec2", "DescribeSubnets", SubnetIds=list(cluster.aws.subnet_ids))["Subnets"]
    zones = sorted({subnet["AvailabilityZone"] for subnet in subnets})
    networks = {subnet["VpcId"] for subnet in subnets}
    if len(networks) > 1:
        raise UserError(
            f"cluster.aws.subnet_ids: they are of several VPCs ({', '.join(sorted(networks))}); use one VPC's"
        )
    for group in cluster.node_groups:
        offered = {name: _zones_with(api, name) for name in group.instance_types}
        if not any(zone in found for found in offered.values() for zone in zones):
            name = group.instance_types[0]
            elsewhere = ", ".join(offered[name]) or "no zone"
            raise UserError(
                f"cluster.node_groups: none of {', '.join(offered)} is offered in {', '.join(zones)}; "
                f"{name} is offered in {elsewhere} of {cluster.aws.region}; use subnets there, another region or type"
            )
    return str(networks.pop())


def _zones_with(api: Api, name: str) -> list[str]:
    assert name in BY_NAME, "the topology check refuses unknown types"
    offerings = api.pages(
        "ec2",
        "DescribeInstanceTypeOfferings",
        "InstanceTypeOfferings",
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": [name]}],
    )
    return sorted(offering["Location"] for offering in offerings)


def ensure_security_group(api: Api, names: Names, vpc: str) -> str:
    """A group that admits its members only, in both directions, as EFA needs; and lets them out to AWS's endpoints."""
    group = find_security_group(api, names)
    if group is None:
        tags = [{"ResourceType": "security-group", "Tags": names.tags()}]
        api.tolerate(
            Kind.EXISTS,  # by a call whose reply was lost
            service="ec2",
            operation="CreateSecurityGroup",
            GroupName=names.security_group,
            Description="Finecut cluster: members only",
            VpcId=vpc,
            TagSpecifications=tags,
        )
        group = find_security_group(api, names)
        assert group is not None, "it has just been made"
    own = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}]
    for operation in ("AuthorizeSecurityGroupIngress", "AuthorizeSecurityGroupEgress"):
        api.tolerate(Kind.EXISTS, service="ec2", operation=operation, GroupId=group, IpPermissions=own)
    return group


def find_security_group(api: Api, names: Names) -> str | None:
    filters = [{"Name": "group-name", "Values": [names.security_group]}]
    found = api.call("ec2", "DescribeSecurityGroups", Filters=filters)["SecurityGroups"]
    return str(found[0]["GroupId"]) if found else None


def ensure_profile(api: Api, names: Names, job: job_pb2.JobConfig, account: str) -> str:
    """Role and instance profile of one name, with the generated policy alone."""
    role = names.role
    trust = json.dumps(policy.TRUST)
    exists = (Kind.EXISTS,)
    api.tolerate(
        *exists,
        service="iam",
        operation="CreateRole",
        RoleName=role,
        AssumeRolePolicyDocument=trust,
        Tags=names.tags(),
    )
    document = json.dumps(policy.of_nodes(job, names, account))
    api.call("iam", "PutRolePolicy", RoleName=role, PolicyName="finecut", PolicyDocument=document)
    api.tolerate(*exists, service="iam", operation="CreateInstanceProfile", InstanceProfileName=role, Tags=names.tags())
    api.tolerate(
        *(Kind.EXISTS, Kind.QUOTA),  # a profile holds one role, and this one is in it
        service="iam",
        operation="AddRoleToInstanceProfile",
        InstanceProfileName=role,
        RoleName=role,
    )
    return role


def ensure_notices(api: Api, names: Names) -> str:
    """A queue that EventBridge fills with spot and state notices; returns its URL."""
    url = str(
        api.call("sqs", "CreateQueue", QueueName=names.queue, tags={"finecut:cluster": names.cluster})["QueueUrl"]
    )
    wanted = ["QueueArn"]
    arn = api.call("sqs", "GetQueueAttributes", QueueUrl=url, AttributeNames=wanted)["Attributes"]["QueueArn"]
    rule = api.call("events", "PutRule", Name=names.queue, EventPattern=json.dumps(_NOTICES), Tags=names.tags())[
        "RuleArn"
    ]
    allow = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "events.amazonaws.com"},
                "Action": "sqs:SendMessage",
                "Resource": arn,
                "Condition": {"ArnEquals": {"aws:SourceArn": rule}},
            }
        ],
    }
    api.call("sqs", "SetQueueAttributes", QueueUrl=url, Attributes={"Policy": json.dumps(allow)})
    api.call("events", "PutTargets", Rule=names.queue, Targets=[{"Id": "queue", "Arn": arn}])
    return url


_NOTICES: dict[str, Any] = {
    "source": ["aws.ec2"],
    "detail-type": [
        "EC2 Spot Instance Interruption Warning",
        "EC2 Instance Rebalance Recommendation",
        "EC2 Instance State-change Notification",
        "EC2 Capacity Block Reservation Expiration Warning",
    ],
}
