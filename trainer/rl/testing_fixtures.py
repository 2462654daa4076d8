"""Fixtures of tests with engines: name this module in `pytest_plugins`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from finecut.trainer.rl import testing


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny policy and prompts, some of which are held out."""
    folder = tmp_path_factory.mktemp("rollouts")
    testing.write_tiny_inputs(folder, num_held_out=6)
    return folder


def start_ray() -> None:
    """A Ray of this machine."""
    os.environ |= {"RAY_worker_niceness": "0"}  # else every other program of the machine goes first
    for attempt in range(10):
        try:
            ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
            break
        except Exception as error:  # Ray gives itself 30 s, which a loaded machine exceeds
            if "timed out during startup" not in str(error) or attempt == 9:
                raise
            ray.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of this machine."""
    start_ray()
    yield
    ray.shutdown()
