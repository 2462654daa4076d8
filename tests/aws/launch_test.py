"""Buying and giving back nodes on moto: what is sent, what is left, what happens when things go wrong."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from finecut.launcher.providers.provider import Phase
from finecut.proto import cluster_pb2
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


def test_gang_is_bought_once_however_often_it_is_asked_for(account: Account, tmp_path: Path) -> None:
    config = testing.job(tmp_path, account)
    for _ in range(3):
        testing.provider(config, account).provision()
    assert len(account.live()) == 2
    sent = account.shim.requests("RunInstances")
    assert [(form["MinCount"], form["MaxCount"]) for form in sent] == [("2", "2")]


def test_request_is_encrypted_tagged_and_has_no_secret_and_no_public_way_in(account: Account, tmp_path: Path) -> None:
    config = testing.job(tmp_path, account)
    testing.provider(config, account).provision()
    form = account.shim.requests("RunInstances")[0]
    assert form["MetadataOptions.HttpTokens"] == "required"
    assert form["MetadataOptions.HttpPutResponseHopLimit"] == "1"
    assert form["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
    assert form["BlockDeviceMapping.1.Ebs.VolumeType"] == "gp3"
    assert form["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert form["ImageId"] == account.image
    assert form["Placement.GroupName"] in account.shim.placement_groups
    assert "SubnetId" not in form and "SecurityGroupId.1" not in form and "KeyName" not in form
    assert {form[f"TagSpecification.{n}.ResourceType"] for n in (1, 2, 3)} == {
        "instance",
        "volume",
        "network-interface",
    }
    script = base64.b64decode(form["UserData"]).decode()
    assert script.index("shutdown -P +20") < script.index("mount"), "the timer comes before all that can fail"
    assert "PRIVATE KEY" not in script and "AKIA" not in script and "token" not in script.lower()


def test_security_group_admits_its_members_only(account: Account, tmp_path: Path) -> None:
    testing.provider(testing.job(tmp_path, account), account).provision()
    groups = account.client("ec2").describe_security_groups()["SecurityGroups"]
    own = next(group for group in groups if group["GroupName"].startswith("finecut-"))
    (rule,) = own["IpPermissions"]
    assert rule["IpProtocol"] == "-1" and not rule["IpRanges"]
    assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [own["GroupId"]]
    assert any(out["UserIdGroupPairs"] for out in own["IpPermissionsEgress"]), "EFA needs both directions"


@pytest.mark.parametrize(("name", "cards"), [("p5.48xlarge", 32), ("p5en.48xlarge", 16), ("p4d.24xlarge", 4)])
def test_each_network_card_gets_an_interface(account: Account, tmp_path: Path, name: str, cards: int) -> None:
    testing.provider(testing.job(tmp_path, account, types=(name,)), account).provision()
    form = account.shim.requests("RunInstances")[0]
    kinds = [form.get(f"NetworkInterface.{n}.InterfaceType") for n in range(1, cards + 2)]
    assert kinds == ["efa"] + ["efa-only"] * (cards - 1) + [None]
    assert {form[f"NetworkInterface.{n}.NetworkCardIndex"] for n in range(1, cards + 1)} == set(map(str, range(cards)))
    assert all(form[f"NetworkInterface.{n}.DeleteOnTermination"] == "true" for n in range(1, cards + 1))


def test_lost_reply_gives_exactly_n_instances(account: Account, tmp_path: Path) -> None:
    account.shim.faults.lose_replies["RunInstances"] = 3
    testing.provider(testing.job(tmp_path, account, nodes=3), account).provision()
    assert len(account.live()) == 3
    assert len({form["ClientToken"] for form in account.shim.requests("RunInstances")}) == 1


def test_no_capacity_moves_on_by_zone_then_by_type_and_leaves_no_straggler(account: Account, tmp_path: Path) -> None:
    first, second = account.subnets[:2]
    account.shim.faults.no_capacity = {("g5.xlarge", first), ("g5.xlarge", second), ("g6.xlarge", first)}
    testing.provider(testing.job(tmp_path, account), account).provision()
    asked = [
        (form["InstanceType"], form["NetworkInterface.1.SubnetId"]) for form in account.shim.requests("RunInstances")
    ]
    assert asked == [("g5.xlarge", first), ("g5.xlarge", second), ("g6.xlarge", first), ("g6.xlarge", second)]
    assert [instance["InstanceType"] for instance in account.live()] == ["g6.xlarge"] * 2


def test_no_capacity_anywhere_is_said_and_nothing_is_left(account: Account, tmp_path: Path) -> None:
    config = testing.job(tmp_path, account)
    account.shim.faults.no_capacity = {(t, s) for t in ("g5.xlarge", "g6.xlarge") for s in account.subnets}
    provider = testing.provider(config, account)
    with pytest.raises(UserError, match=r"no capacity for 2 nodes now .*capacity_wait"):
        provider.apply(provider.plan(config))
    provider.release()
    assert account.leftovers() == []


def test_second_group_without_capacity_releases_the_first(account: Account, tmp_path: Path) -> None:
    config = testing.job(tmp_path, account, types=("g5.xlarge",))
    other = config.cluster.node_groups.add(name="rollout", node_count=1, volume_gib=100)
    other.instance_types.append("g6.xlarge")
    account.shim.faults.no_capacity = {("g6.xlarge", subnet) for subnet in account.subnets}
    provider = testing.provider(config, account)
    with pytest.raises(UserError, match="rollout: no capacity"):
        provider.apply(provider.plan(config))
    assert len(account.live()) == 2
    provider.release()
    assert account.leftovers() == []


def test_throttling_storm_is_bounded_and_survived(account: Account, tmp_path: Path) -> None:
    account.shim.faults.throttle = 7
    testing.provider(testing.job(tmp_path, account), account).provision()
    assert len(account.live()) == 2
    before = len(account.shim.sent)
    account.shim.faults.throttle = 1000
    with pytest.raises(UserError, match="did not succeed within the tries it has"):
        testing.provider(testing.job(tmp_path, account), account).provision()
    assert len(account.shim.sent) - before == 8


@pytest.mark.parametrize("market", ["SPOT", "CAPACITY_BLOCK", "RESERVATION"])
def test_markets(account: Account, tmp_path: Path, market: str) -> None:
    config = testing.job(tmp_path, account, types=("p5.48xlarge",))
    group = config.cluster.node_groups[0]
    group.market = cluster_pb2.NodeGroup.Market.Value(market)
    if market != "SPOT":
        group.reservation_id = "cr-0123456789abcdef0"
    testing.provider(config, account).provision()
    form = account.shim.requests("RunInstances")[0]
    reservation = form.get("CapacityReservationSpecification.CapacityReservationTarget.CapacityReservationId")
    expected = {
        "SPOT": ("spot", None, True),
        "CAPACITY_BLOCK": ("capacity-block", "cr-0123456789abcdef0", False),
        "RESERVATION": (None, "cr-0123456789abcdef0", False),
    }[market]
    assert (form.get("InstanceMarketOptions.MarketType"), reservation, "Placement.GroupName" in form) == expected


@pytest.mark.parametrize(
    ("operation", "code", "sentence"),
    [
        (
            "RunInstances",
            "UnauthorizedOperation",
            "may not do ec2:RunInstances .* add ec2:RunInstances to the launcher's",
        ),
        ("CreateRole", "AccessDenied", "may not do .*:CreateRole"),
        ("RunInstances", "VcpuLimitExceeded", "over a quota"),
        ("RunInstances", "InvalidAMIID.NotFound", "the machine image is gone .*ami_parameter"),
    ],
)
def test_refusals_are_sentences_and_leave_nothing(
    account: Account, tmp_path: Path, operation: str, code: str, sentence: str
) -> None:
    config = testing.job(tmp_path, account)
    account.shim.faults.deny[operation] = code
    provider = testing.provider(config, account)
    with pytest.raises(UserError, match=sentence):
        provider.apply(provider.plan(config))
    account.shim.faults.deny.clear()
    provider.release()
    assert account.leftovers() == []


def test_unknown_image_parameter_is_named(account: Account, tmp_path: Path) -> None:
    config = testing.job(tmp_path, account)
    config.cluster.aws.ami_parameter = "/no/such"
    with pytest.raises(UserError, match=r"cluster.aws.ami_parameter: us-east-1 has no SSM parameter '/no/such'"):
        testing.provider(config, account).provision()


def test_image_is_pinned_when_the_parameter_moves_on(account: Account, tmp_path: Path) -> None:
    config = testing.job(tmp_path, account)
    testing.provider(config, account).provision()
    account.client("ssm").put_parameter(Name=testing.OWN_PARAMETER, Value="ami-newer", Type="String", Overwrite=True)
    account.client("ec2").terminate_instances(InstanceIds=[account.live()[0]["InstanceId"]])
    testing.provider(config, account).provision()
    assert {form["ImageId"] for form in account.shim.requests("RunInstances")} == {account.image}
    assert len(account.live()) == 2


def test_ended_instance_is_replaced_alone_with_a_new_token(account: Account, tmp_path: Path) -> None:
    config = testing.job(tmp_path, account, nodes=3)
    testing.provider(config, account).provision()
    before = {instance["InstanceId"] for instance in account.live()}
    account.client("ec2").terminate_instances(InstanceIds=[sorted(before)[0]])
    testing.provider(config, account).provision()
    after = {instance["InstanceId"] for instance in account.live()}
    assert len(after) == 3 and len(after & before) == 2
    sent = account.shim.requests("RunInstances")
    assert [form["MinCount"] for form in sent] == ["3", "1"] and sent[0]["ClientToken"] != sent[1]["ClientToken"]


def test_spent_token_is_replaced(account: Account, tmp_path: Path) -> None:
    """The store is lost, but the cluster's id is not: the first token stands for instances that have ended."""
    config = testing.job(tmp_path, account)
    first = testing.provider(config, account)
    first.provision()
    cluster = account.shim.requests("RunInstances")[0]["TagSpecification.1.Tag.1.Value"]
    account.client("ec2").terminate_instances(InstanceIds=[i["InstanceId"] for i in account.live()])
    database = tmp_path / "runs" / "tiny" / "cluster.sqlite"
    for path in database.parent.glob("cluster.sqlite*"):
        path.unlink()
    second = testing.provider(config, account)
    second._store().remember("cluster", cluster)
    second.provision()
    assert len(account.live()) == 2


def test_release_leaves_nothing_and_may_be_repeated(account: Account, tmp_path: Path) -> None:
    config = testing.job(tmp_path, account)
    provider = testing.provider(config, account)
    provider.release()
    provider.provision()
    assert provider.observe().phase is Phase.STARTING
    provider.release()
    provider.release()
    assert account.leftovers() == []
    assert provider.observe().phase is Phase.ABSENT


def test_superseded_launcher_neither_buys_nor_gives_back(account: Account, tmp_path: Path) -> None:
    config = testing.job(tmp_path, account)
    stale, newer = testing.provider(config, account), testing.provider(config, account)
    stale.provision()
    newer.provision()
    account.client("ec2").terminate_instances(InstanceIds=[account.live()[0]["InstanceId"]])
    for act in (stale.provision, stale.release):
        with pytest.raises(UserError, match="another launcher has taken this run's cluster over"):
            act()
    assert len(account.live()) == 1, "nothing was bought, and nothing was ended"
    newer.provision()
    assert len(account.live()) == 2
    newer.release()
    assert account.leftovers() == []


def test_policy_reads_the_bundle_and_nothing_else_of_s3(account: Account, tmp_path: Path) -> None:
    config = testing.job(tmp_path, account)
    testing.provider(config, account).provision()
    role = next(r["RoleName"] for r in account.client("iam").list_roles()["Roles"] if "finecut" in r["RoleName"])
    document = account.client("iam").get_role_policy(RoleName=role, PolicyName="finecut")["PolicyDocument"]
    statements = {statement["Sid"]: statement for statement in document["Statement"]}
    assert set(statements) == {"ReadObjects", "ReadList", "OwnSecrets"}
    assert statements["ReadObjects"]["Resource"] == ["arn:aws:s3:::code/bundle.tar.gz"]
    assert "*" not in json.dumps([s["Action"] for s in statements.values()])


def test_region_without_the_type_names_where_it_is(account: Account, tmp_path: Path) -> None:
    config = testing.job(tmp_path, account, types=("p6-b200.48xlarge",))
    offered = account.client("ec2").describe_instance_type_offerings(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": ["p6-b200.48xlarge"]}]
    )["InstanceTypeOfferings"]
    zones = {
        subnet["AvailabilityZone"]
        for subnet in account.client("ec2").describe_subnets(SubnetIds=account.subnets[:2])["Subnets"]
    }
    assert not zones & {offering["Location"] for offering in offered}
    with pytest.raises(UserError, match=r"none of p6-b200.48xlarge is offered in us-east-1a, us-east-1b"):
        testing.provider(config, account).provision()
