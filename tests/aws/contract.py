"""What every provider must do, as a program: Ray reads its environment once a process.

Usage: python -m finecut.tests.aws.contract JOB NODES
"""

import sys
from pathlib import Path

from google.protobuf import text_format

from finecut.launcher.providers import registry
from finecut.launcher.providers.provider import Phase
from finecut.proto import job_pb2
from finecut.proto.run import RunFolder


def where() -> str:
    """Runs on a node of the cluster."""
    import ray

    return str(ray.util.get_node_ip_address())


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

    import ray

    # Each takes all cores of a node, so that no two share one.
    task = ray.remote(num_cpus=first.cpu_count / num_nodes, scheduling_strategy="SPREAD")(where)
    found = set(ray.get([task.remote() for _ in range(num_nodes)], timeout=300))
    assert len(found) == num_nodes, found

    provider.release()
    assert provider.observe().phase is Phase.ABSENT
    provider.release()
    assert provider.observe().phase is Phase.ABSENT
    print("the contract is kept")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
