"""Flexible gangs on moto: one request for all types and zones. And what the launcher must be allowed to call."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from finecut.proto import cluster_pb2, job_pb2
from finecut.proto.config import UserError
from finecut.tests.aws import testing
from finecut.tests.aws.testing import Account


@pytest.fixture(scope="module")
def server() -> Iterator[Account]:
    with testing.account() as made:
        yield made


@pytest.fixture
def account(server: Account) -> Account:
    server.start_anew()
    return server


def flexible_job(folder: Path, account: Account, nodes: int = 2) -> job_pb2.JobConfig:
    config = testing.job(folder, account, nodes)
    group = config.cluster.node_groups[0]
    group.market, group.flexible = cluster_pb2.NodeGroup.SPOT, True
    return config


def test_flexible_gang_is_one_request_for_every_type_and_zone(account: Account, tmp_path: Path) -> None:
    testing.provider(flexible_job(tmp_path, account), account).provision()
    (form,) = account.shim.requests("CreateFleet")
    assert form["Type"] == "instant" and form["TargetCapacitySpecification.TotalTargetCapacity"] == "2"
    spot = {key.removeprefix("SpotOptions."): value for key, value in form.items() if key.startswith("SpotOptions.")}
    assert spot == {
        "AllocationStrategy": "capacity-optimized-prioritized",
        "InstanceInterruptionBehavior": "terminate",
        "SingleInstanceType": "true",
        "SingleAvailabilityZone": "true",
        "MinTargetCapacity": "2",
    }
    pairs = {
        (
            form[f"LaunchTemplateConfigs.{c}.Overrides.{o}.InstanceType"],
            form[f"LaunchTemplateConfigs.{c}.Overrides.{o}.SubnetId"],
        )
        for c in (1, 2)
        for o in (1, 2)
    }
    assert pairs == {(name, subnet) for name in ("g5.xlarge", "g6.xlarge") for subnet in account.subnets[:2]}
    assert {i["InstanceType"] for i in account.live()} == {"g5.xlarge"} and len(account.live()) == 2
    assert account.shim.requests("RunInstances") == []


def test_template_is_what_run_instances_would_say_without_a_zone(account: Account, tmp_path: Path) -> None:
    testing.provider(flexible_job(tmp_path, account), account).provision()
    form = account.shim.requests("CreateLaunchTemplate")[0]
    data = {key.removeprefix("LaunchTemplateData."): value for key, value in form.items()}
    assert data["MetadataOptions.HttpTokens"] == "required" and data["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert data["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
    assert not any("SubnetId" in key or "InstanceMarketOptions" in key for key in data)
    assert base64.b64decode(data["UserData"]).startswith(b"#!/bin/bash")


def test_flexible_gang_takes_the_pair_that_has_room_and_no_straggler(account: Account, tmp_path: Path) -> None:
    first, second = account.subnets[:2]
    account.shim.faults.no_capacity = {("g5.xlarge", first), ("g5.xlarge", second), ("g6.xlarge", first)}
    testing.provider(flexible_job(tmp_path, account, nodes=3), account).provision()
    assert len(account.shim.requests("CreateFleet")) == 1
    assert [(i["InstanceType"], i["SubnetId"]) for i in account.live()] == [("g6.xlarge", second)] * 3


def test_flexible_gang_without_room_anywhere_is_said_and_nothing_is_left(account: Account, tmp_path: Path) -> None:
    config = flexible_job(tmp_path, account)
    account.shim.faults.no_capacity = {(t, s) for t in ("g5.xlarge", "g6.xlarge") for s in account.subnets}
    provider = testing.provider(config, account)
    with pytest.raises(UserError, match=r"no capacity for 2 nodes now \(no type in no zone: InsufficientInstance"):
        provider.apply(provider.plan(config))
    provider.release()
    assert account.leftovers() == []


def test_lost_reply_of_a_fleet_gives_exactly_n_instances(account: Account, tmp_path: Path) -> None:
    account.shim.faults.lose_replies["CreateFleet"] = 2
    provider = testing.provider(flexible_job(tmp_path, account), account)
    provider.provision()
    assert len(account.live()) == 2 and len({f["ClientToken"] for f in account.shim.requests("CreateFleet")}) == 1
    provider.release()
    assert account.leftovers() == []


@pytest.mark.parametrize("buying", ["ordered", "flexible", "own groups"])
def test_every_call_is_in_the_policy_that_the_plan_prints_for_the_launcher(
    account: Account, tmp_path: Path, buying: str
) -> None:
    config = flexible_job(tmp_path, account) if buying == "flexible" else testing.job(tmp_path, account)
    if buying == "own groups":
        group = account.client("ec2").describe_security_groups()["SecurityGroups"][0]["GroupId"]
        config.cluster.aws.security_group_ids.append(group)
        config.cluster.aws.instance_profile = "mine"
        account.client("iam").create_instance_profile(InstanceProfileName="mine")
    points = testing.CrashPoints()
    provider = testing.provider(config, account, points)
    purchase = provider.plan(config).purchase
    assert purchase is not None
    allowed = {action.split(":")[1] for each in purchase.launcher_policy["Statement"] for action in each["Action"]}
    provider.provision()
    provider.release()
    called = {name.split()[1] for name in points.passed if name.split()[1][0].isupper()}
    assert called and called <= allowed, called - allowed
    assert ("CreateFleet" in allowed, "CreateRole" in allowed) == (buying == "flexible", buying != "own groups")
