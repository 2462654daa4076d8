"""Names, tags and tokens of one cluster: all follow from its id, so that any launcher finds what another one made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

# The Deep Learning AMI with NVIDIA's driver and EFA's; AWS publishes the newest image's id under this name.
IMAGE_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
CLUSTER_TAG = "finecut:cluster"
GROUP_TAG = "finecut:group"
TOKEN_TAG = "finecut:token"
MARKET_TAG = "finecut:market"


@dataclass(frozen=True)
class Names:
    """What the parts of a cluster are called. Example: Names("quickstart-1a2b3c4d").security_group."""

    cluster: str

    @property
    def security_group(self) -> str:
        return f"finecut-{self.cluster}"

    @property
    def role(self) -> str:
        """Role and instance profile. IAM allows 64 characters; ids are at most 55."""
        return f"finecut-{self.cluster}"[:64]

    @property
    def queue(self) -> str:
        """SQS queue and EventBridge rule of the cluster's notices."""
        return f"finecut-{self.cluster}"[:64]

    @property
    def parameters(self) -> str:
        """Prefix of the cluster's SSM parameters."""
        return f"/finecut/{self.cluster}"

    @property
    def lease(self) -> str:
        """Parameter that the launcher renews while it lives."""
        return f"{self.parameters}/lease"

    def node_secret(self, instance: str) -> str:
        """SecureString with a node's certificate, key, and the cluster's token and head."""
        return f"{self.parameters}/nodes/{instance}"

    def placement_group(self, group: str, subnet: str) -> str:
        """A group is of one zone, so each subnet has its own."""
        return f"finecut-{self.cluster}-{group}-{subnet}"

    def template(self, instance_type: str, digest: str) -> str:
        """Launch template of one type; other contents have another name."""
        return f"finecut-{self.cluster}-{instance_type}-{digest}"

    def tags(self, **more: str) -> list[dict[str, str]]:
        """Tags that every resource of the cluster carries, in the form of EC2 and IAM."""
        return [{"Key": CLUSTER_TAG, "Value": self.cluster}] + [
            {"Key": f"finecut:{key}", "Value": value} for key, value in more.items()
        ]


def client_token(cluster: str, group: str, subnet: str, instance_type: str, attempt: int) -> str:
    """EC2's idempotency token: the same request gives the same instances, however often it is sent. 64 characters."""
    text = "\0".join((cluster, group, subnet, instance_type, str(attempt)))
    return hashlib.sha256(text.encode()).hexdigest()


def filters(cluster: str) -> list[dict[str, Any]]:
    """EC2 filter of what belongs to a cluster."""
    return [{"Name": f"tag:{CLUSTER_TAG}", "Values": [cluster]}]
