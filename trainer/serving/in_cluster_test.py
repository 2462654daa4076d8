"""How long a stage serves on the nodes of its job, with a process that stands in for the endpoint's."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finecut.proto import job_pb2
from finecut.trainer.serving import endpoints, in_cluster, process, serve_replicas
from finecut.trainer.serving.in_cluster import EndpointError, Served, ServingTime

VERSION = "deploy-1"


class Endpoint:
    """A process, and what it would say of itself."""

    def __init__(self, folder: Path) -> None:
        ignore = [sys.executable, "-c", "import signal; signal.pause()"]
        self.process = subprocess.Popen(ignore)
        self.said: dict[str, Any] = {"state": "serving", "stable": VERSION}
        self.served = Served("chat", VERSION, "http://127.0.0.1:1/v1", self.process.pid, folder)

    def status(self) -> dict[str, Any]:
        return self.said


@pytest.fixture
def endpoint(tmp_path: Path):
    made = Endpoint(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Endpoints whose replicas were ended."""
    found: list[str] = []
    monkeypatch.setattr(serve_replicas, "end_left", found.append)
    return found


def time_of(folder: Path, seconds: float) -> ServingTime:
    job = job_pb2.JobConfig(name="served")
    job.storage.root = str(folder)
    job.stages.add(name="deploy").deploy.serve_for.FromMilliseconds(int(1000 * seconds))
    return ServingTime(job, "deploy")


def test_it_serves_for_its_time_over_all_starts(tmp_path: Path, endpoint: Endpoint) -> None:
    first = time_of(tmp_path, 2.0)
    assert 0 < first.note() <= 2.0
    said = in_cluster.serve(endpoint, endpoint.served, first)
    assert said == "deploy-1 has served for its time" and not process.is_running(endpoint.process.pid)
    assert time_of(tmp_path, 2.0).note() <= 0, "nothing is left after a resume"


def test_a_version_that_takes_over_ends_the_stage_and_not_the_endpoint(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoint.said = {"state": "serving", "stable": "again-2"}
    said = in_cluster.serve(endpoint, endpoint.served, time_of(tmp_path, 1000))
    assert said == "again-2 has taken over from deploy-1" and process.is_running(endpoint.process.pid)


def test_an_endpoint_that_was_told_to_end_has_served(tmp_path: Path, endpoint: Endpoint) -> None:
    endpoints.write_status(tmp_path, {"state": endpoints.ENDED})
    endpoint.process.terminate()
    endpoint.process.wait()
    assert in_cluster.serve(endpoint, endpoint.served, time_of(tmp_path, 1000)) == "chat was told to end"


def test_what_a_killed_endpoint_leaves_in_the_cluster_is_ended(
    tmp_path: Path, endpoint: Endpoint, left: list[str]
) -> None:
    endpoints.write_status(tmp_path, {"state": "serving"})
    endpoint.process.send_signal(signal.SIGKILL)
    endpoint.process.wait()
    with pytest.raises(EndpointError, match="process is gone"):
        in_cluster.serve(endpoint, endpoint.served, time_of(tmp_path, 1000))
    assert left == ["chat"]


def test_an_endpoint_without_a_version_is_ended_with_the_stage_that_failed(endpoint: Endpoint) -> None:
    in_cluster.clear(endpoint, endpoint.served)
    assert process.is_running(endpoint.process.pid), "another stage's version answers"
    endpoint.said = {"state": "failed", "stable": None}
    in_cluster.clear(endpoint, endpoint.served)
    assert not process.is_running(endpoint.process.pid)
