"""The monitor, round by round, with a cloud and a Ray that are only remembered."""

import json
import os
import signal
from pathlib import Path

import pytest

from finecut.launcher.providers.aws import monitor
from finecut.launcher.providers.aws.testing import World
from finecut.launcher.providers.membership import Member
from finecut.launcher.reconcile import store as states
from finecut.proto.config import UserError


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.join_all()
    return made


def test_nodes_are_told_and_admitted_and_each_pair_is_measured_once(world: World) -> None:
    assert [node.state for node in world.store.nodes()] == [states.ADMITTED] * 2
    secrets = [json.loads(value) for name, value in world.api.parameters.items() if "/nodes/" in name]
    assert sorted(len(secret["peers"]) for secret in secrets) == [0, 1]
    assert "/finecut/tiny-1/lease" in world.api.parameters


def test_notice_from_the_queue_drains_replaces_and_then_gives_back(world: World) -> None:
    first, second = world.cloud.live
    detail = {"detail-type": "EC2 Spot Instance Interruption Warning", "detail": {"instance-id": first}}
    world.api.messages = [json.dumps(detail), "no event", json.dumps({"detail-type": "x", "detail": {}})]
    world.monitor.round()
    assert world.ray.drained == [first] and world.state(first) == states.NOTICED
    assert len(world.cloud.live) == 3 and world.cloud.terminated == [], "it works on while another is bought"
    world.ray.joined[first] = Member(is_alive=False, is_draining=False)
    world.monitor.round()
    assert world.cloud.terminated == [first] and second in world.cloud.live and len(world.cloud.live) == 2


def test_node_whose_agent_heard_first_is_replaced(world: World) -> None:
    first = world.cloud.live[0]
    world.ray.joined[first] = Member(is_alive=True, is_draining=True)
    world.monitor.round()
    assert world.state(first) == states.NOTICED and world.ray.drained == [] and len(world.cloud.live) == 3


def test_node_that_vanished_is_replaced_at_once(world: World) -> None:
    first = world.cloud.live[0]
    world.cloud.terminate([first])
    world.ray.joined[first] = Member(is_alive=False, is_draining=False)
    world.monitor._deadlines.pop("look", None)
    world.monitor.round()
    assert world.state(first) == states.ENDED and len(world.cloud.live) == 2


def test_only_the_status_api_is_away_and_nodes_are_left_alone(world: World) -> None:
    world.cloud.is_down = True
    world.monitor._deadlines.pop("look", None)
    with pytest.raises(OSError, match="the status API is down"):
        world.monitor.round()
    world.cloud.is_down = False
    world.monitor.round()
    assert world.cloud.terminated == [] and [node.state for node in world.store.nodes()] == [states.ADMITTED] * 2


def test_node_that_left_ray_may_come_back(world: World) -> None:
    first = world.cloud.live[0]
    world.ray.joined[first] = Member(is_alive=False, is_draining=False)
    world.monitor.round()
    assert world.state(first) == states.ADMITTED and f"node {first} is not heard of; it has 90 s" in world.said[-1]
    world.ray.joined[first] = Member(is_alive=True, is_draining=False)
    world.monitor.round()
    assert world.cloud.terminated == []


def test_node_that_does_not_come_back_is_quarantined_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_REJOIN_S", -1.0)
    first, second = world.cloud.live
    world.ray.joined[first] = Member(is_alive=False, is_draining=False)
    world.monitor.round()
    world.monitor.round()
    assert world.cloud.terminated == [first] and second in world.cloud.live and len(world.cloud.live) == 2


def test_unfit_nodes_in_a_row_end_the_buying(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(UserError, match=r"\d nodes in a row were bought and did not join"):
        for _ in range(4):
            world.cloud.terminate(world.cloud.live)
            world.monitor._deadlines.pop("look", None)
            world.monitor.round()
    assert len(world.cloud.machines) == 4, "two, and two in their place"


def test_node_gets_a_new_certificate_when_its_own_is_due(world: World) -> None:
    first, second = world.cloud.live
    before = dict(world.api.parameters)
    world.ray.overdue = [first]
    world.monitor.round()
    told = {name: world.api.parameters[f"/finecut/tiny-1/nodes/{name}"] for name in (first, second)}
    assert json.loads(told[first])["certificate"] == "certificate 3"
    assert told[second] == before[f"/finecut/tiny-1/nodes/{second}"]


def test_run_stops_once_before_the_certificates_of_living_processes_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    world.monitor.round()
    assert sent == []
    world.ray.ends = True
    world.monitor.round()
    world.monitor.round()
    assert sent == [(os.getpid(), signal.SIGTERM)] and "certificates" in "".join(world.said)


def test_spent_budget_stops_the_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    world = World(tmp_path, budget=1e-9)
    world.join_all()
    assert sent == [(os.getpid(), signal.SIGTERM)]
