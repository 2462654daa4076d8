"""What outsiders read of a run's machines."""

from pathlib import Path

import pytest

from finecut.launcher.reconcile import nodes
from finecut.launcher.reconcile import store as states
from finecut.launcher.reconcile.store import Launch, Node, Store
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder


def bought(folder: Path) -> Store:
    store = Store(folder / states.FILE)
    store.intend(Launch("t", "train", 1, 2, {}, states.INTENDED))
    made = [
        Node(
            f"i-{n}", "t", "train", "10.0.0.1", "g5.xlarge", 2.0, 1000.0, zone="us-east-1a", market="SPOT", since=1000.0
        )
        for n in (1, 2)
    ]
    store.bought("t", made)
    return store


def test_nodes_are_told_with_place_market_state_and_cost(tmp_path: Path) -> None:
    store = bought(tmp_path)
    store.move("i-1", states.ADMITTED)
    store.move("i-2", states.ENDED, "spot interruption", ended_at=1000.0 + 1800)
    first, second = nodes.nodes_of(RunFolder(tmp_path), now=1000.0 + 3600)
    assert (first.id, first.instance_type, first.zone, first.market) == ("i-1", "g5.xlarge", "us-east-1a", "SPOT")
    assert (first.state, first.cost_usd) == ("admitted", pytest.approx(2.0)) and first.since > 1000.0
    assert (second.state, second.reason, second.cost_usd) == ("ended", "spot interruption", pytest.approx(1.0))
    assert nodes.cost_of([first, second]) == pytest.approx(store.cost(1000.0 + 3600))


def test_since_is_the_time_of_the_last_change_of_state(tmp_path: Path) -> None:
    store = bought(tmp_path)
    store.move("i-1", states.NOTICED, "spot interruption")
    (before,) = [node.since for node in nodes.nodes_of(RunFolder(tmp_path)) if node.id == "i-1"]
    store.move("i-1", states.NOTICED, "again")
    (after,) = [node.since for node in nodes.nodes_of(RunFolder(tmp_path)) if node.id == "i-1"]
    assert before == after


def test_host_of_ones_own_is_told_and_costs_nothing(tmp_path: Path) -> None:
    store = bought(tmp_path)
    store.host("10.0.0.9", states.ADMITTED)
    store.host("10.0.0.9", states.ENDED)
    host = nodes.nodes_of(RunFolder(tmp_path))[-1]
    assert (host.id, host.group, host.state, host.cost_usd) == ("10.0.0.9", nodes.HOSTS, "ended", 0.0)
    assert host.started_at <= host.since and "10.0.0.9" not in [node.instance for node in store.nodes()]


def test_run_on_this_machine_has_none(tmp_path: Path) -> None:
    assert nodes.nodes_of(RunFolder(tmp_path)) == [] and list(tmp_path.iterdir()) == []


def test_file_that_is_no_record_is_said(tmp_path: Path) -> None:
    (tmp_path / states.FILE).write_text("something else, and long enough to be read as a page of a database" * 20)
    with pytest.raises(UserError, match=r"cluster.sqlite cannot be read"):
        nodes.nodes_of(RunFolder(tmp_path))
