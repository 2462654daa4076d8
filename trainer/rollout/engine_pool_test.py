"""Places of engines, on a real Ray that grows."""

import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from finecut.trainer.rollout.engine_config import EngineConfig
from finecut.trainer.rollout.engine_group import Share
from finecut.trainer.rollout.engine_pool import EnginePool, FleetConfig


@pytest.fixture
def cluster() -> Any:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0.0))


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_engines_wait_for_room_and_take_it_when_a_node_comes(cluster: Any) -> None:
    pool = EnginePool(FleetConfig(EngineConfig(Path("model")), num_engines=1, share=Share(cpus=1)))
    assert not pool.has_room(1, 2) and not pool.has_room(1, 2)
    cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
    wait_until(lambda: pool.has_room(1, 2))
    wait_until(lambda: free_cpus() == 1)
    assert pool.has_room(1, 1)
    wait_until(lambda: free_cpus() == 2)  # what nobody wants any more is given back
    wait_until(lambda: pool.has_room(1, 3))
    pool.take()
    pool.end(2)
    wait_until(lambda: free_cpus() == 1)
    pool.close()
    wait_until(lambda: free_cpus() == 3)
