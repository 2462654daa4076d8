"""The launcher is killed at every store write and every cloud call; afterwards nothing is leaked or bought twice."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finecut.launcher.providers.aws.provider import AwsProvider
from finecut.proto import cluster_pb2, job_pb2
from finecut.tests.aws import testing
from finecut.tests.aws.testing import Account, CrashPoints, Killed


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with testing.account() as made:
        yield made


def launch(provider: AwsProvider, account: Account) -> None:
    provider.provision()


def replace(provider: AwsProvider, account: Account) -> None:
    provider.provision()


def cancel(provider: AwsProvider, account: Account) -> None:
    provider.release()


def different_ends(passed: list[str]) -> list[int]:
    """Points that leave different things behind: the first, and those after something was changed.

    To die before a call leaves what dying after the one before it left, and calls that only look change nothing.
    """
    looks = ("after Describe", "after Get", "after Receive")
    changed = (at for at, name in enumerate(passed, 1) if name.startswith("after") and not name.startswith(looks))
    return [1, *changed]


def prepared(work: Callable[..., None], config: job_pb2.JobConfig, account: Account) -> None:
    """What is there before `work` starts."""
    if work is launch:
        return
    provider = testing.provider(config, account)
    provider.provision()
    if work is replace:
        account.client("ec2").terminate_instances(InstanceIds=[account.live()[0]["InstanceId"]])


def ordered(config: job_pb2.JobConfig) -> None:
    """Types and zones one after the other."""


def flexible(config: job_pb2.JobConfig) -> None:
    """All of them by one CreateFleet."""
    group = config.cluster.node_groups[0]
    group.market, group.flexible = cluster_pb2.NodeGroup.SPOT, True


def crash(
    work: Callable[..., None], buying: Callable[..., None], at: int, folder: Path, account: Account
) -> tuple[job_pb2.JobConfig, CrashPoints]:
    """Does `work` in a launcher that dies at its `at`-th point; 0: it lives."""
    config = testing.job(folder, account)
    buying(config)
    prepared(work, config, account)
    points = CrashPoints(at)
    try:
        work(testing.provider(config, account, points), account)
    except Killed:
        assert at
    return config, points


@pytest.mark.parametrize(
    ("work", "buying"),
    [(launch, ordered), (launch, flexible), (replace, ordered), (replace, flexible), (cancel, flexible)],
)
def test_nothing_is_leaked_or_doubled_at_any_point(
    account: Account, tmp_path: Path, work: Callable[..., None], buying: Callable[..., None]
) -> None:
    config, points = crash(work, buying, 0, tmp_path / "whole", account)
    testing.provider(config, account).release()
    assert len(different_ends(points.passed)) > 8, "the work has crash points"
    for at in different_ends(points.passed):
        account.shim.bury()
        config, died = crash(work, buying, at, tmp_path / str(at), account)
        where = f"{work.__name__}, killed {died.passed[at - 1]} ({at} of {len(points.passed)})"
        again = testing.provider(config, account)
        if work is not cancel:
            again.provision()
            assert len(account.live()) == 2, where
            assert {node.instance for node in again._store().nodes()} == {i["InstanceId"] for i in account.live()}, (
                where
            )
        again.release()
        assert account.leftovers() == [], where


@pytest.mark.parametrize("work", [launch, replace])
def test_cancel_after_a_kill_at_any_point_leaves_nothing(
    account: Account, tmp_path: Path, work: Callable[..., None]
) -> None:
    config, points = crash(work, flexible, 0, tmp_path / "whole", account)
    testing.provider(config, account).release()
    for at in different_ends(points.passed):
        account.shim.bury()
        config, died = crash(work, flexible, at, tmp_path / str(at), account)
        again = testing.provider(config, account)
        again.release()
        assert account.leftovers() == [], f"{work.__name__}, killed {died.passed[at - 1]}"
