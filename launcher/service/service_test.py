"""A service as its callers and its operator see it: a process of its own, killed and stopped at bad moments."""

import os
import signal
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from finecut.launcher import runs, testing
from finecut.launcher.client import JobClient, ServiceError
from finecut.launcher.service.testing import Service, running, tell, until, until_in
from finecut.proto import job_pb2, service_pb2
from finecut.proto.config import ConfigError, load_submission
from finecut.proto.run import RunFolder

SECONDS = 120.0  # of a call


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests, because starting one takes as long as most of them. It runs one job at a time."""
    with running(tmp_path_factory.mktemp("s") / "s") as service:
        yield service


@pytest.fixture
def service(shared: Service) -> Iterator[Service]:
    """The shared service, at work on nothing."""
    yield shared
    with shared.client() as client:
        made = [job.id for job in client.jobs() if job.state in (service_pb2.PENDING, service_pb2.RUNNING)]
        for job_id in made:
            client.cancel(job_id)
        for job_id in made:
            client.wait(job_id)


@pytest.fixture
def client(service: Service) -> Iterator[JobClient]:
    with service.client() as client:
        yield client


@pytest.fixture
def job(tmp_path: Path) -> job_pb2.JobConfig:
    return load_submission(testing.write_job(tmp_path))


@pytest.fixture
def held(tmp_path: Path, job: job_pb2.JobConfig) -> job_pb2.JobConfig:
    """The job, which stays in the stage sft until there is a file `go`."""
    tell(job, f"hold:sft:{tmp_path}/go")
    return job


def calls(tmp_path: Path) -> list[str]:
    return testing.calls(tmp_path / "runs" / "tiny")


def states(events: list[service_pb2.JobEvent]) -> list[str]:
    """States of the job itself."""
    found = [event for event in events if not event.stage and event.WhichOneof("event") == "state"]
    return [service_pb2.JobState.Name(event.state) for event in found]


def test_job_runs_and_tells_everything_in_order(client: JobClient, tmp_path: Path, job: job_pb2.JobConfig) -> None:
    submitted = client.submit(job)
    assert submitted.state == service_pb2.PENDING and submitted.principal == "ann"
    events = list(client.watch(submitted.id))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert states(events) == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert {event.step.values["loss"] for event in events if event.HasField("step")} == {1.5}
    done = client.get(submitted.id)
    assert [stage.state for stage in done.stages] == [service_pb2.SUCCEEDED] * 3
    assert all(Path(stage.artifact, "manifest.json").is_file() for stage in done.stages)
    assert list(client.watch(submitted.id, after_sequence=len(events) - 1)) == events[-1:]
    assert done.config.storage.root == job.storage.root
    assert calls(tmp_path) == ["prepare", "sft", "export"]


@pytest.mark.parametrize(
    ("action", "reason"), [("fail", "RuntimeError: the machine is on fire"), ("refuse", "chat.jsonl:3: not JSON")]
)
def test_failed_job_says_why(client: JobClient, job: job_pb2.JobConfig, action: str, reason: str) -> None:
    tell(job, f"{action}:sft")
    done = client.wait(client.submit(job).id)
    assert done.state == service_pb2.FAILED and reason in done.error and reason in done.stages[1].error
    assert "stage 'sft' failed" in done.error and "Traceback" not in done.error


def test_launcher_that_keeps_crashing_is_given_up(client: JobClient, job: job_pb2.JobConfig) -> None:
    tell(job, "crash")
    done = client.wait(client.submit(job).id)
    assert done.state == service_pb2.FAILED and "ended with signal SIGKILL, 5 times in a row" in done.error


def test_32_submissions_at_once_with_one_request_id_make_one_job(client: JobClient, held: job_pb2.JobConfig) -> None:
    before = {made.id for made in client.jobs()}
    with ThreadPoolExecutor(32) as pool:
        ids = {made.id for made in pool.map(lambda _: client.submit(held, "nightly"), range(32))}
    assert len(ids) == 1 and {made.id for made in client.jobs()} - before == ids
    held.stages[1].sft.training.max_steps += 1
    with pytest.raises(ServiceError, match="request_id: belongs to a job with another config") as raised:
        client.submit(held, "nightly")
    assert raised.value.code is grpc.StatusCode.ALREADY_EXISTS
    held.stages[1].sft.training.max_steps -= 1
    held.stages[1].sft.training.seed = 0  # what is the default anyway
    assert client.submit(held, "nightly").id in ids


def test_killed_service_loses_nothing_and_repeats_nothing(
    service: Service, tmp_path: Path, held: job_pb2.JobConfig
) -> None:
    with service.client() as client:
        first = client.submit(held, "killed-1")
        until_in("sft", client, first.id)
        waiting = job_pb2.JobConfig()
        waiting.CopyFrom(held)
        waiting.name = "second"
        second = client.submit(waiting, "killed-2")
    service.kill()
    until(lambda: not service.launchers(), "the launcher outlived the service")
    (tmp_path / "go").touch()
    service.start()
    with service.client() as client:
        events = list(client.watch(first.id))
        assert client.get(first.id).state == service_pb2.SUCCEEDED
        assert client.wait(second.id).state == service_pb2.SUCCEEDED
    assert calls(tmp_path) == ["prepare", "sft", "sft", "export"]
    prepared = [event for event in events if event.stage == "prepare" and event.state == service_pb2.SUCCEEDED]
    assert len(prepared) == 1, "an event was told twice"


def test_stopped_service_gives_its_jobs_back_and_watches_go_on_without_a_gap(
    service: Service, tmp_path: Path, held: job_pb2.JobConfig
) -> None:
    port = service.address.rpartition(":")[2]
    with service.client() as client, ThreadPoolExecutor(1) as pool:
        made = client.submit(held)
        watched = pool.submit(lambda: list(client.watch(made.id)))
        until_in("sft", client, made.id)
        assert service.stop() == 0 and not service.launchers()
        (tmp_path / "go").touch()
        service.start(port)
        events = watched.result(SECONDS)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert states(events) == ["PENDING", "RUNNING", "PENDING", "RUNNING", "SUCCEEDED"]
    assert calls(tmp_path) == ["prepare", "sft", "sft", "export"]


@pytest.mark.parametrize("moment", ["waiting", "starting", "running", "running and killed"])
def test_cancel_leaves_nothing_running(
    service: Service, client: JobClient, held: job_pb2.JobConfig, moment: str
) -> None:
    made = client.submit(held)
    if moment == "waiting":
        held.name = "second"
        made = client.submit(held)
    if moment == "starting":
        until(service.launchers, "no launcher was started")
    if moment.startswith("running"):
        until_in("sft", client, made.id)
    if moment == "running and killed":
        for pid in service.launchers():
            os.kill(pid, signal.SIGKILL)
    client.cancel(made.id)
    done = client.wait(made.id)
    assert done.state == service_pb2.CANCELLED and not done.error
    if moment != "waiting":
        assert not service.launchers()
        assert runs.launcher_pid(RunFolder.of(done.config)) is None
        assert (Path(done.config.storage.root) / done.config.name / "released").is_file()
    assert client.cancel(made.id).state == service_pb2.CANCELLED


def test_second_service_in_the_same_folder_is_refused(shared: Service) -> None:
    with pytest.raises(AssertionError, match="another service works in"):
        Service(shared.state.parent)


def test_health_reflection_and_metrics_answer(service: Service, client: JobClient, job: job_pb2.JobConfig) -> None:
    client.wait(client.submit(job).id)
    with grpc.insecure_channel(service.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(service="finecut.v1.JobService"), timeout=SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        listed = next(stub.ServerReflectionInfo(iter([asked]), timeout=SECONDS)).list_services_response.service
        assert "finecut.v1.JobService" in {found.name for found in listed}
    page = urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics", timeout=SECONDS).read().decode()
    numbers = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    succeeded = sum(1 for _ in client.jobs(service_pb2.SUCCEEDED))
    assert float(numbers['finecut_jobs{state="SUCCEEDED"}']) == succeeded > 0
    assert float(numbers['finecut_calls_total{code="OK",method="SubmitJob"}']) > 0
    assert float(numbers["finecut_launchers_started_total"]) > 0


def test_bytes_that_are_no_request_and_unknown_fields_are_the_callers_fault(
    service: Service, job: job_pb2.JobConfig
) -> None:
    logged = len(service.log.read_text())
    newer = service_pb2.SubmitJobRequest(request_id="1", config=job).SerializeToString() + b"\xf8\x7f\x01"
    with grpc.insecure_channel(service.address) as channel:
        submit = channel.unary_unary("/finecut.v1.JobService/SubmitJob")
        for data, sentence in ((b"\xff\xff", "the bytes are damaged"), (newer, "has no field number 2047")):
            with pytest.raises(grpc.RpcError, match=sentence) as raised:
                submit(data, timeout=SECONDS)
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in service.log.read_text()[logged:]


def test_problems_of_a_config_arrive_with_their_paths_however_many(client: JobClient, job: job_pb2.JobConfig) -> None:
    job.stages[0].data_prep.sources[0].paths[:] = [f"/nowhere/{index}.jsonl" for index in range(300)]
    job.stages[1].sft.training.parallelism.tensor_parallel_size = -1
    with pytest.raises(ConfigError) as raised:
        client.submit(job)
    paths = [problem.path for problem in raised.value.problems]
    assert paths.count("stages[1].sft.training.parallelism.tensor_parallel_size") == 1
    assert sum(path.startswith("stages[0].data_prep.sources[0].paths") for path in paths) == 300


def test_job_that_its_machines_or_its_budget_cannot_do_is_refused(client: JobClient, job: job_pb2.JobConfig) -> None:
    aws, group = job.cluster.aws, job.cluster.node_groups.add(name="train", node_count=2)
    aws.region, aws.bundle = "us-east-1", "s3://code/bundle.tar.gz"
    aws.subnet_ids.append("subnet-1")
    aws.file_system.source, aws.file_system.folder = "files.example:/", "/shared"
    group.instance_types.append("g5.gigantic")
    assert "cluster.node_groups[0].instance_types[0]" in {problem.path for problem in client.validate(job)}
    group.instance_types[0] = "g5.xlarge"
    job.stages[1].sft.training.parallelism.tensor_parallel_size = 4
    job.cluster.max_cost_usd = 0.001
    with pytest.raises(ConfigError) as raised:
        client.submit(job)
    assert "cluster.max_cost_usd" in {problem.path for problem in raised.value.problems}


def test_list_goes_over_pages_and_refuses_garbage_tokens(
    service: Service, client: JobClient, held: job_pb2.JobConfig
) -> None:
    ids = []
    for index in range(60):  # a page holds 50
        held.name = f"job-{index}"
        ids.append(client.submit(held, f"page-{index}").id)
    assert [found.id for found in client.jobs()][:60] == ids[::-1]
    with grpc.insecure_channel(service.address) as channel:
        call = channel.unary_unary("/finecut.v1.JobService/ListJobs")
        for token in ("x", "AAAA", "é", "QUJD" * 100):
            request = service_pb2.ListJobsRequest(page_token=token)
            with pytest.raises(grpc.RpcError, match="page_token") as raised:
                call(request.SerializeToString(), timeout=SECONDS)
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
