"""The reconciler beside a cloud whose answers come late, early, or from another time."""

from pathlib import Path

import pytest

from finecut.launcher.reconcile import store as states
from finecut.launcher.reconcile.reconciler import Instance, Reconciler
from finecut.launcher.reconcile.store import Launch, Node, Store, SupersededError
from finecut.launcher.reconcile.testing import FakeCloud


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cluster.sqlite")


def reconciler(store: Store, cloud: FakeCloud, now: float = 1000.0, **desired: int) -> Reconciler:
    return Reconciler(store, cloud, desired or {"train": 2}, say=lambda text: None, clock=lambda: now)


def test_reaper_beside_a_launch_in_flight_kills_no_live_node(store: Store) -> None:
    """Another thread's launch happens while the list is on its way, and is settled before the store is read."""
    cloud = FakeCloud()
    reaper = reconciler(store, cloud)

    def launch_meanwhile() -> None:
        reconciler(store, cloud).converge()

    cloud.after_list = launch_meanwhile
    reaper.look()
    assert len(cloud.live) == 2 and cloud.terminated == []


def test_instance_of_a_launch_that_is_only_intended_is_left_alone(store: Store) -> None:
    cloud = FakeCloud()
    store.intend(Launch("t", "train", 1, 1, {"token": "t", "zone": "a", "group": "train", "count": 1}, states.INTENDED))
    cloud.machines["i-x"] = Instance("i-x", "t", "train", "", "big", True, 0.0)
    reconciler(store, cloud).look()
    assert cloud.terminated == [] and [node.instance for node in store.nodes()] == ["i-x"]


def test_instance_that_no_launch_explains_is_ended(store: Store) -> None:
    cloud = FakeCloud({"i-x": Instance("i-x", "unknown", "train", "", "big", True, 0.0)})
    reconciler(store, cloud).look()
    assert cloud.terminated == ["i-x"]


def test_young_instance_that_is_not_listed_yet_is_not_bought_again(store: Store) -> None:
    cloud = FakeCloud()
    reconciler(store, cloud, now=1.0).converge()
    cloud.hidden = set(cloud.live)
    reconciler(store, cloud, now=60.0).converge()
    assert len(cloud.live) == 2
    reconciler(store, cloud, now=600.0).converge()
    assert len(cloud.live) == 4, "after that it counts as gone"


def test_only_the_group_that_is_full_falls_back_and_only_what_is_missing_is_bought(store: Store) -> None:
    cloud = FakeCloud(full={"a"})
    assert reconciler(store, cloud, train=2, rollout=1).converge() == []
    assert {launch.token: launch.state for launch in store.launches()} == {
        "train-a-1": states.FAILED,
        "train-b-1": states.DONE,
        "rollout-a-1": states.FAILED,
        "rollout-b-1": states.DONE,
    }
    cloud.terminate([cloud.live[0]])
    assert reconciler(store, cloud, train=2, rollout=1).converge() == []
    assert store.launches()[-1].count == 1 and len(cloud.live) == 3


def test_full_cloud_is_said_and_costs_nothing(store: Store) -> None:
    cloud = FakeCloud(full={"a", "b"})
    (reason,) = reconciler(store, cloud).converge()
    assert reason == "train: no capacity for 2 nodes now (zone a: full; zone b: full)"
    assert cloud.live == [] and store.cost(5000.0) == 0


def test_noticed_node_works_on_while_its_replacement_is_bought(store: Store) -> None:
    cloud = FakeCloud()
    reconciler(store, cloud).converge()
    first = store.nodes()[0].instance
    store.move(first, states.NOTICED, "spot interruption")
    reconciler(store, cloud).converge()
    assert len(cloud.live) == 3 and cloud.terminated == []
    store.move(first, states.LEAVING, "spot interruption")
    reconciler(store, cloud).converge()
    assert len(cloud.live) == 2 and cloud.terminated == [first]


def test_fewer_are_wanted_and_those_at_work_stay(store: Store) -> None:
    cloud = FakeCloud()
    reconciler(store, cloud, train=3).converge()
    at_work = store.nodes()[0].instance
    store.move(at_work, states.ADMITTED)
    reconciler(store, cloud, train=1).converge()
    assert cloud.live == [at_work]


def test_release_ends_what_was_only_intended_too(store: Store) -> None:
    cloud = FakeCloud()
    reconciler(store, cloud).converge()
    store.intend(Launch("t", "train", 9, 1, {"token": "t", "zone": "a", "group": "train", "count": 1}, states.INTENDED))
    cloud.machines["i-late"] = Instance("i-late", "t", "train", "", "big", True, 0.0)
    assert reconciler(store, cloud).release()
    assert cloud.live == []


def test_cost_counts_ended_nodes_until_their_end_and_others_until_now(store: Store) -> None:
    launch = Launch("t", "train", 1, 2, {}, states.INTENDED)
    store.intend(launch)
    store.bought("t", [Node(f"i-{n}", "t", "train", "", "big", 10.0, started_at=0.0) for n in (1, 2)])
    store.move("i-1", states.ENDED, "gone", ended_at=1800.0)
    assert store.cost(3600.0) == pytest.approx(15.0)


def test_launcher_that_was_superseded_buys_and_writes_nothing(tmp_path: Path) -> None:
    """Two launchers on one store: the first was frozen, and its lock was lost."""
    cloud = FakeCloud()
    stale, newer = Store(tmp_path / "cluster.sqlite"), Store(tmp_path / "cluster.sqlite")
    stale.take_over()
    newer.take_over()
    with pytest.raises(SupersededError, match="another launcher has taken"):
        reconciler(stale, cloud).converge()
    with pytest.raises(SupersededError):
        stale.remember("phase", "released")
    assert cloud.live == [] and newer.launches() == [] and newer.fact("phase") is None
    assert reconciler(newer, cloud).converge() == [] and len(cloud.live) == 2


def test_store_keeps_its_cluster_id_and_survives_being_opened_again(tmp_path: Path) -> None:
    first = Store(tmp_path / "cluster.sqlite")
    name = first.cluster("quickstart")
    first.close()
    assert Store(tmp_path / "cluster.sqlite").cluster("quickstart") == name and name.startswith("quickstart-")
