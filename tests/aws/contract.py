"""What every provider must do, as a program: Ray reads its environment once a process.

Usage: python -m finecut.tests.aws.contract JOB NODES
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from google.protobuf import text_format

from finecut.launcher.providers import demand, registry
from finecut.launcher.providers.provider import Phase
from finecut.proto import job_pb2
from finecut.proto.run import RunFolder, node_roles


def where() -> str:
    """Runs on a node of the cluster."""
    import ray

    return str(ray.util.get_node_ip_address())


def nodes_at_work(num_nodes: int, cpus: int) -> set[str]:
    """Addresses of nodes that have done a task each, with all of their cores."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    places = placement_group([{"CPU": float(cpus)}] * num_nodes, strategy="STRICT_SPREAD")
    options = [
        {"num_cpus": cpus, "scheduling_strategy": PlacementGroupSchedulingStrategy(places, number)}
        for number in range(num_nodes)
    ]
    found = set(ray.get([ray.remote(**each)(where).remote() for each in options], timeout=600))
    remove_placement_group(places)
    return found


def certificate() -> tuple[str, str]:
    """Runs on a node: its address, and the certificate that its next process uses."""
    import ray

    return str(ray.util.get_node_ip_address()), Path(os.environ["RAY_TLS_SERVER_CERT"]).read_text()


def wait_for_new_certificates(num_nodes: int) -> None:
    """Every node gets a new one while Ray runs, and processes that start with it are admitted by those that live."""
    import ray

    def look(mark: str) -> dict[str, str]:
        # A variable of its own has Ray start new processes.
        options = {"num_cpus": 1, "scheduling_strategy": "SPREAD", "runtime_env": {"env_vars": {"MARK": mark}}}
        task = ray.remote(**options)(certificate)
        return dict(ray.get([task.remote() for _ in range(4 * num_nodes)], timeout=600))

    first, deadline = look("first"), time.monotonic() + 900
    renewed: set[str] = set()
    while len(first) < num_nodes or renewed != set(first):
        assert time.monotonic() < deadline, f"only {renewed} of {set(first)} have new certificates"
        now = look(str(time.monotonic()))
        renewed |= {address for address, text in now.items() if text != first.setdefault(address, text)}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Polls; machines may be slow."""
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def look_at_demand(num_nodes: int, cpus: int) -> None:
    """Nodes are idle, busy while something stands on them, and work that finds no room is counted in nodes."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    wait_until(lambda: len(demand.idle_instances()) == num_nodes, "all nodes are idle")
    role = node_roles.asked(node_roles.TRAIN, ray.cluster_resources())
    assert role, "nodes that are bought have a role"
    first = placement_group([{"CPU": 1.0} | role])
    wait_until(lambda: len(demand.idle_instances()) == num_nodes - 1, "one node is busy")
    assert demand.waiting_nodes(node_roles.TRAIN, cpus, 0) == 0
    more = placement_group([{"CPU": float(cpus)} | role] * (num_nodes + 1))
    wait_until(lambda: demand.waiting_nodes(node_roles.TRAIN, cpus, 0) == num_nodes + 1, "work waits")
    assert demand.waiting_nodes(node_roles.DATA, cpus, 0) == 0
    for places in (first, more):
        remove_placement_group(places)
    wait_until(lambda: len(demand.idle_instances()) == num_nodes, "all nodes are idle again")
    assert demand.waiting_nodes(node_roles.TRAIN, cpus, 0) == 0


def main(path: str, num_nodes: int) -> None:
    """Goes through a cluster's life; an assertion says what was broken."""
    job = text_format.Parse(Path(path).read_text(), job_pb2.JobConfig())
    folder = RunFolder.of(job)
    provider = registry.provider_of(job, folder)
    plan = provider.plan(job)
    assert not folder.root.exists(), "plan touches nothing"
    assert provider.plan(job) == plan and plan.node_count == num_nodes, plan
    assert provider.observe().phase is Phase.ABSENT

    provider.apply(plan)
    first = provider.observe()
    assert (first.phase, first.node_count) == (Phase.READY, num_nodes), first
    provider.apply(plan)
    again = provider.observe()
    assert (again.phase, again.node_count, again.cpu_count) == (first.phase, first.node_count, first.cpu_count)

    found = nodes_at_work(num_nodes, first.cpu_count // num_nodes)
    assert len(found) == num_nodes, found

    if job.cluster.node_groups:
        look_at_demand(num_nodes, first.cpu_count // num_nodes)
    if 0 < job.cluster.certificate_renewal < 0.1:
        wait_for_new_certificates(num_nodes)

    provider.release()
    assert provider.observe().phase is Phase.ABSENT
    provider.release()
    assert provider.observe().phase is Phase.ABSENT
    print("the contract is kept")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
