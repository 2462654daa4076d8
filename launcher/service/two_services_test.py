"""Two services as processes of their own on one store: one that hangs or is killed is replaced by the other."""

import contextlib
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from finecut.launcher import testing
from finecut.launcher.client import JobClient
from finecut.launcher.service.testing import Service, running, tell, until, until_in
from finecut.launcher.store import testing as stores
from finecut.proto import job_pb2, service_pb2
from finecut.proto.config import load_submission

LEASE_SECONDS = "12"


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new store's URL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.sqlite"
        return
    if (programs := stores.programs()) is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with stores.running_postgresql(programs) as server:
        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        yield server.replace("/postgres?", f"/{name}?")


@pytest.fixture
def services(store: str, tmp_path: Path) -> Iterator[tuple[Service, Service]]:
    """Both on the store, each with room for two jobs."""
    config = f'store: "{store}" max_running_jobs: 2'
    lease = {"FINECUT_TEST_LEASE": LEASE_SECONDS}
    with running(tmp_path / "one", config, **lease) as one, running(tmp_path / "two", config, **lease) as two:
        yield one, two


def held_job(folder: Path, name: str) -> job_pb2.JobConfig:
    """A job that stays in the stage sft until its folder holds a file `go`."""
    job = load_submission(testing.write_job(folder / name, name))
    tell(job, f"hold:sft:{folder / name}/go")
    return job


def let_go(folder: Path, name: str) -> None:
    (folder / name / "go").touch()


def at_work_on(name: str, *services: Service) -> list[Service]:
    """Services of which a launcher is at work on the run of that name."""
    found = []
    for service in services:
        for pid in service.launchers():
            with contextlib.suppress(OSError):  # it has ended
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                found += [service] if f'name: "{name}"' in Path(words[-2]).read_text() else []
    return found


def finished(client: JobClient, job_id: str) -> list[service_pb2.JobEvent]:
    """Events of a job that must succeed, without a gap."""
    assert client.wait(job_id).state == service_pb2.SUCCEEDED
    events = list(client.watch(job_id))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return events


def test_each_job_has_one_of_two_services_and_the_other_takes_it_over(
    services: tuple[Service, Service], tmp_path: Path
) -> None:
    one, two = services
    with one.client() as client, two.client() as other:
        ids = {}
        for name, asked in (("a", client), ("b", client), ("c", other), ("d", other)):
            ids[name] = asked.submit(held_job(tmp_path, name)).id
        for job_id in ids.values():
            until_in("sft", client, job_id)  # two jobs at each service: both are at work
        owners = {name: at_work_on(name, one, two) for name in ids}
        assert all(len(found) == 1 for found in owners.values()), "a job is not at one service alone"
        ones = [name for name, found in owners.items() if found == [one]]
        assert len(ones) == 2, "one service has more than its share"

        one.process.send_signal(signal.SIGSTOP)
        try:
            for name in ids.keys() - ones:  # which makes room
                let_go(tmp_path, name)
                finished(other, ids[name])
            until(lambda: all(at_work_on(name, two) for name in ones), "the second service did not take over")
            assert not one.launchers(), "two launchers work on one job"
            let_go(tmp_path, ones[0])
            before = finished(other, ids[ones[0]])
        finally:
            one.process.send_signal(signal.SIGCONT)
        until(lambda: "the lease is lost" in one.log.read_text(), "the first service did not notice")
        assert list(client.watch(ids[ones[0]])) == before, "a service that had lost its lease wrote"

        two.kill()
        until(lambda: at_work_on(ones[1], one), "the first service did not take over")
        assert not two.launchers(), "two launchers work on one job"
        let_go(tmp_path, ones[1])
        finished(client, ids[ones[1]])
    for name in ids:
        calls = testing.calls(tmp_path / name / "runs" / name)
        assert calls.count("prepare") == calls.count("export") == 1, "a finished stage was run again"
