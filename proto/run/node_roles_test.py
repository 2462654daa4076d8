"""Work finds the nodes of its role, and any node where there are no roles."""

from finecut.proto.run import node_roles
from finecut.proto.run.node_roles import DATA, ROLLOUT, TRAIN

TRAINS = {"CPU": 8.0, "GPU": 4.0} | node_roles.offered(TRAIN)
SAMPLES = {"CPU": 8.0, "GPU": 2.0} | node_roles.offered(ROLLOUT)
PLAIN = {"CPU": 4.0, "GPU": 1.0} | node_roles.offered("")


def total(*nodes: dict[str, float]) -> dict[str, float]:
    return {name: sum(node.get(name, 0.0) for node in nodes) for name in set().union(*nodes)}


def test_work_asks_for_nodes_of_its_role() -> None:
    assert node_roles.asked(ROLLOUT, total(TRAINS, SAMPLES)) == {"finecut-rollout": 0.001}
    assert node_roles.asked(TRAIN, total(TRAINS, SAMPLES)) == {"finecut-train": 0.001}


def test_work_without_nodes_of_its_own_goes_to_those_that_train() -> None:
    assert node_roles.asked(DATA, total(TRAINS, SAMPLES)) == {"finecut-train": 0.001}


def test_cluster_without_roles_takes_any_work_anywhere() -> None:
    assert node_roles.asked(TRAIN, total(PLAIN)) == {}
    assert node_roles.of_role(TRAIN, total(PLAIN, PLAIN), []) == total(PLAIN, PLAIN)


def test_only_nodes_of_the_role_count() -> None:
    nodes = [TRAINS, SAMPLES, TRAINS]
    assert node_roles.of_role(TRAIN, total(*nodes), nodes)["GPU"] == 8.0
    assert node_roles.of_role(ROLLOUT, total(*nodes), nodes)["GPU"] == 2.0


def test_room_is_counted_node_by_node() -> None:
    train, rollout = node_roles.resource(node_roles.TRAIN), node_roles.resource(node_roles.ROLLOUT)
    free = [{"GPU": 7.0, rollout: 1000.0}, {"GPU": 3.0, rollout: 1000.0}, {"GPU": 8.0, train: 1000.0}, {"CPU": 4.0}]
    asked = node_roles.asked(node_roles.ROLLOUT, {rollout: 2000.0, train: 1000.0})
    assert node_roles.room(4, asked, free) == 1
    assert node_roles.room(1, asked, free) == 10
    assert node_roles.room(4, {}, free) == 3
