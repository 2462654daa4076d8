"""What a cluster on EC2 would be: whole requests, policy and cost. Pure, and without boto3."""

from __future__ import annotations

from finecut.launcher.providers import topology
from finecut.launcher.providers.aws import cost, requests
from finecut.launcher.providers.aws.instance_types import BY_NAME
from finecut.launcher.providers.aws.launcher_policy import of_launcher
from finecut.launcher.providers.aws.names import IMAGE_PARAMETER, Names
from finecut.launcher.providers.aws.policy import of_nodes
from finecut.launcher.providers.aws.purchases import Purchases
from finecut.launcher.providers.aws.requests import Facts
from finecut.launcher.providers.provider import ClusterPlan, Purchase
from finecut.proto import job_pb2
from finecut.proto.config import ConfigError

_OBJECT_STORE_BYTES = 256 * 1024 * 1024


def plan(job: job_pb2.JobConfig) -> ClusterPlan:
    """The machines of a resolved job; touches nothing. Raises ConfigError for what cannot work."""
    problems = list(topology.check(job))
    if problems:
        raise ConfigError(problems)
    groups = job.cluster.node_groups
    hosts = job.cluster.aws.hosts.hosts
    nodes = [(group.node_count, BY_NAME[group.instance_types[0]]) for group in groups]
    return ClusterPlan(
        "aws",
        node_count=sum(count for count, _ in nodes) + len(hosts),
        cpu_count=sum(count * kind.cpu_count for count, kind in nodes) + sum(host.cpu_count for host in hosts),
        object_store_bytes=_OBJECT_STORE_BYTES,
        gpu_count=sum(count * kind.gpu_count for count, kind in nodes) + sum(host.gpu_count for host in hosts),
        purchase=_purchase(job),
    )


def _purchase(job: job_pb2.JobConfig) -> Purchase:
    """What would be sent for a new cluster, with placeholders for what is looked up first."""
    aws, names = job.cluster.aws, Names(f"{job.name}-00000000")
    image = f"resolve:ssm:{aws.ami_parameter or IMAGE_PARAMETER}"
    groups = tuple(aws.security_group_ids) or (f"({names.security_group})",)
    purchases = Purchases(job.cluster, names, Facts(image, groups, aws.instance_profile or names.role))
    sent, order = [], []
    for group in job.cluster.node_groups:
        for _, request in purchases.requests(group.name, group.node_count, attempt=1):
            sent.append(requests.redacted(request))
            order.append(purchases.summary(group.name, request))
    policies = (of_nodes(job, names, "000000000000"), of_launcher(job, names, "000000000000"))
    return Purchase(tuple(sent), tuple(order), *policies, cost=str(cost.estimate(job)))
