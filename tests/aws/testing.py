"""A moto account with a cluster's job, and a provider on it that tests can crash."""

from __future__ import annotations

import base64
import functools
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from finecut.launcher.providers.aws.api import Api
from finecut.launcher.providers.aws.provider import AwsProvider
from finecut.launcher.reconcile.store import Store
from finecut.proto import cluster_pb2, job_pb2
from finecut.proto.run import RunFolder
from finecut.tests.aws.shim import Shim, serving

REGION = "us-east-1"
_KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
OWN_PARAMETER = "/finecut-test/image"


def variables(account: Account) -> dict[str, str]:
    """The environment of a launcher whose AWS is `account`."""
    return {
        "AWS_ENDPOINT_URL": account.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "OMP_NUM_THREADS": "1",
    }


class Killed(BaseException):
    """The launcher's end, at a crash point. Nothing that it does afterwards has an effect."""


class CrashPoints:
    """Ends the launcher at the `at`-th point from now on; afterwards every point does, so that it stays dead."""

    def __init__(self, at: int = 0) -> None:
        self.at = at
        self.passed: list[str] = []

    def __call__(self, name: str) -> None:
        self.passed.append(name)
        if self.at and len(self.passed) >= self.at:
            raise Killed(name)


@dataclass(eq=False)
class Account:
    """A moto account behind the shim."""

    shim: Shim
    url: str
    subnets: list[str]
    image: str

    def start_anew(self) -> None:
        """Empties the account; starting another server would take many times longer."""
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")).close()
        self.shim.start_anew()
        ec2 = self.client("ec2")
        self.subnets[:] = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"][:3]]
        # The same after each reset; moto takes a second to list its images.
        self.image = self.image or ec2.describe_images()["Images"][0]["ImageId"]
        self.client("ssm").put_parameter(Name=OWN_PARAMETER, Value=self.image, Type="String")
        self.shim.sent.clear()

    @functools.cached_property
    def _session(self) -> _Session:
        return _Session(self.url)  # one for all, because models of services take a while to load

    @functools.cache  # noqa: B019 - an account lives as long as its test
    def client(self, service: str) -> Any:
        return self._session.client(service, config=Config(retries={"total_max_attempts": 1}))

    def api(self, crash_point: Callable[[str], None] = lambda name: None) -> Api:
        api = Api(REGION, session=self._session, crash_point=crash_point, sleep=lambda seconds: None)
        api._clients = self._api_clients  # making them takes longer than most tests
        return api

    @functools.cached_property
    def _api_clients(self) -> dict[str, Any]:
        return {}

    def user_data(self, instance: str) -> str:
        """What an instance runs when it boots."""
        answer = self.client("ec2").describe_instance_attribute(InstanceId=instance, Attribute="userData")
        return base64.b64decode(answer["UserData"]["Value"]).decode()

    def node_secrets(self) -> list[dict[str, Any]]:
        """Parameters that hold nodes' secrets, decrypted."""
        answer = self.client("ssm").get_parameters_by_path(Path="/finecut", Recursive=True, WithDecryption=True)
        return [parameter for parameter in answer["Parameters"] if "/nodes/" in parameter["Name"]]

    def live(self) -> list[dict[str, Any]]:
        """Instances that are billed."""
        billed = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        found = self.client("ec2").describe_instances(Filters=billed)["Reservations"]
        return [instance for reservation in found for instance in reservation["Instances"]]

    def leftovers(self) -> list[str]:
        """Whatever a released cluster should not have left."""
        left = [instance["InstanceId"] for instance in self.live()]
        ec2, iam = self.client("ec2"), self.client("iam")
        left += [
            g["GroupName"] for g in ec2.describe_security_groups()["SecurityGroups"] if "finecut" in g["GroupName"]
        ]
        left += list(self.shim.placement_groups)
        left += [each["LaunchTemplateName"] for each in ec2.describe_launch_templates()["LaunchTemplates"]]
        left += [role["RoleName"] for role in iam.list_roles()["Roles"] if "finecut" in role["RoleName"]]
        left += [profile["InstanceProfileName"] for profile in iam.list_instance_profiles()["InstanceProfiles"]]
        left += self.client("sqs").list_queues().get("QueueUrls", [])
        left += [rule["Name"] for rule in self.client("events").list_rules()["Rules"]]
        parameters = self.client("ssm").get_parameters_by_path(Path="/finecut", Recursive=True)["Parameters"]
        return left + [parameter["Name"] for parameter in parameters]


class _Session(boto3.Session):
    """Clients of the shim, whatever the environment says."""

    def __init__(self, url: str) -> None:
        super().__init__(region_name=REGION, **_KEYS)
        self._url = url

    def client(self, service_name: str, **more: Any) -> Any:  # type: ignore[override]
        return super().client(service_name, endpoint_url=self._url, **more)


@contextmanager
def account() -> Iterator[Account]:
    """An empty account."""
    shim = Shim()
    with serving(shim) as url:
        made = Account(shim, url, [], "")
        made.start_anew()
        yield made


def job(
    folder: Path, made: Account, nodes: int = 2, types: tuple[str, ...] = ("g5.xlarge", "g6.xlarge")
) -> job_pb2.JobConfig:
    """A resolved job of no stages on `nodes` nodes; its run is below `folder`."""
    config = job_pb2.JobConfig(name="tiny")
    config.storage.root = str(folder / "runs")
    aws = config.cluster.aws
    aws.region = REGION
    aws.subnet_ids.extend(made.subnets[:2])
    aws.ami_parameter = OWN_PARAMETER
    aws.bundle = "s3://code/bundle.tar.gz"
    aws.file_system.source = "fs.example:/"
    aws.file_system.folder = str(folder)
    aws.python = "/opt/finecut/bin/python"
    aws.dead_man.seconds = 1200
    aws.efa_device_index = 1
    group = config.cluster.node_groups.add(name="train", role=cluster_pb2.NodeGroup.TRAIN, node_count=nodes)
    group.instance_types.extend(types)
    group.market = cluster_pb2.NodeGroup.ON_DEMAND
    group.volume_gib = 200
    return config


def provider(
    config: job_pb2.JobConfig, made: Account, crash_point: Callable[[str], None] = lambda name: None
) -> AwsProvider:
    """A launcher's provider on the run's store."""
    folder = RunFolder.of(config)
    store = Store(folder.root / "cluster.sqlite", crash_point)
    return AwsProvider(config, folder, made.api(crash_point), store, say=lambda text: None)
