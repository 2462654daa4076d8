"""A service as its callers and its operator see it: a process of its own, killed and stopped at bad moments."""

import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from finecut.launcher import runs, testing
from finecut.launcher.client import JobClient, ServiceError
from finecut.launcher.service.testing import MODULE, Service, running
from finecut.proto import job_pb2, service_pb2
from finecut.proto.config import ConfigError, load_submission
from finecut.proto.run import RunFolder


@pytest.fixture
def job(tmp_path: Path) -> job_pb2.JobConfig:
    return load_submission(testing.write_job(tmp_path))


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Service]:
    """A service whose jobs hang in the stage sft until a file lets them go on."""
    with running(tmp_path / "s", FINECUT_TEST_MISBEHAVE=f"hold:sft:{tmp_path}/go") as service:
        yield service


def until(condition: Callable[[], object], what: str, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def until_in_sft(client: JobClient, job_id: str) -> None:
    until(lambda: client.get(job_id).stages[1].state == service_pb2.RUNNING, "sft was not reached")


def launchers(service: Service) -> list[int]:
    """Launcher processes of a service's jobs, whoever is their parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if MODULE.encode() in words and any(word.startswith(f"{service.state}/jobs".encode()) for word in words):
            found.append(int(path.parent.name))
    return found


def calls(tmp_path: Path) -> list[str]:
    return testing.calls(tmp_path / "runs" / "tiny")


def names(events: list[service_pb2.JobEvent]) -> list[str]:
    """States of the job itself."""
    found = [event for event in events if not event.stage and event.WhichOneof("event") == "state"]
    return [service_pb2.JobState.Name(event.state) for event in found]


def test_job_runs_and_tells_everything_in_order(tmp_path: Path, job: job_pb2.JobConfig) -> None:
    with running(tmp_path / "s") as service, service.client() as client:
        submitted = client.submit(job)
        assert submitted.state == service_pb2.PENDING and submitted.principal == "ann"
        events = list(client.watch(submitted.id))
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert names(events) == ["PENDING", "RUNNING", "SUCCEEDED"]
        assert {event.step.values["loss"] for event in events if event.HasField("step")} == {1.5}
        done = client.get(submitted.id)
        assert [stage.state for stage in done.stages] == [service_pb2.SUCCEEDED] * 3
        assert all(Path(stage.artifact, "manifest.json").is_file() for stage in done.stages)
        assert list(client.watch(submitted.id, after_sequence=len(events) - 1)) == events[-1:]
        assert done.config.storage.root == job.storage.root
    assert calls(tmp_path) == ["prepare", "sft", "export"]


@pytest.mark.parametrize("action", ["fail", "refuse"])
def test_failed_job_says_why(tmp_path: Path, job: job_pb2.JobConfig, action: str) -> None:
    with running(tmp_path / "s", FINECUT_TEST_MISBEHAVE=f"{action}:sft") as service, service.client() as client:
        done = client.wait(client.submit(job).id)
        reason = {"fail": "RuntimeError: the machine is on fire", "refuse": "chat.jsonl:3: not JSON"}[action]
        assert done.state == service_pb2.FAILED and reason in done.error and reason in done.stages[1].error
        assert "stage 'sft' failed" in done.error and "Traceback" not in done.error


def test_launcher_that_keeps_crashing_is_given_up(tmp_path: Path, job: job_pb2.JobConfig) -> None:
    with running(tmp_path / "s", FINECUT_TEST_MISBEHAVE="crash") as service, service.client() as client:
        done = client.wait(client.submit(job).id)
        assert done.state == service_pb2.FAILED and "ended with signal SIGKILL, 5 times in a row" in done.error


def test_32_submissions_at_once_with_one_request_id_make_one_job(tmp_path: Path, job: job_pb2.JobConfig) -> None:
    with running(tmp_path / "s", FINECUT_TEST_MISBEHAVE="hang:prepare") as service, service.client() as client:
        with ThreadPoolExecutor(32) as pool:
            ids = {made.id for made in pool.map(lambda _: client.submit(job, "nightly"), range(32))}
        assert len(ids) == 1 and [made.id for made in client.jobs()] == list(ids)
        job.stages[1].sft.training.max_steps += 1
        with pytest.raises(ServiceError, match="request_id: belongs to a job with another config") as raised:
            client.submit(job, "nightly")
        assert raised.value.code is grpc.StatusCode.ALREADY_EXISTS
        job.stages[1].sft.training.max_steps -= 1
        job.stages[1].sft.training.seed = 0  # what is the default anyway
        assert client.submit(job, "nightly").id in ids


def test_killed_service_loses_nothing_and_repeats_nothing(
    tmp_path: Path, job: job_pb2.JobConfig, hanging: Service
) -> None:
    with hanging.client() as client:
        first = client.submit(job, "1")
        until_in_sft(client, first.id)
        waiting = job_pb2.JobConfig()
        waiting.CopyFrom(job)
        waiting.name = "second"
        second = client.submit(waiting, "2")
    hanging.kill()
    until(lambda: not launchers(hanging), "the launcher outlived the service")
    (tmp_path / "go").touch()
    hanging.start()
    with hanging.client() as client:
        events = list(client.watch(first.id))
        assert client.get(first.id).state == service_pb2.SUCCEEDED
        assert client.wait(second.id).state == service_pb2.SUCCEEDED
    assert calls(tmp_path) == ["prepare", "sft", "sft", "export"]
    prepared = [event for event in events if event.stage == "prepare" and event.state == service_pb2.SUCCEEDED]
    assert len(prepared) == 1, "an event was told twice"


def test_watch_goes_on_over_a_restart_without_a_gap(tmp_path: Path, job: job_pb2.JobConfig, hanging: Service) -> None:
    port = hanging.address.rpartition(":")[2]
    with hanging.client() as client, ThreadPoolExecutor(1) as pool:
        made = client.submit(job)
        watched = pool.submit(lambda: list(client.watch(made.id)))
        until_in_sft(client, made.id)
        hanging.kill()
        (tmp_path / "go").touch()
        hanging.start(port)
        events = watched.result(90)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert names(events)[-1] == "SUCCEEDED"


def test_stopped_service_gives_its_jobs_back(tmp_path: Path, job: job_pb2.JobConfig, hanging: Service) -> None:
    with hanging.client() as client:
        made = client.submit(job)
        until_in_sft(client, made.id)
        assert hanging.stop() == 0
    assert not launchers(hanging)
    (tmp_path / "go").touch()
    hanging.start()
    with hanging.client() as client:
        events = list(client.watch(made.id))
    assert names(events) == ["PENDING", "RUNNING", "PENDING", "RUNNING", "SUCCEEDED"]
    assert calls(tmp_path) == ["prepare", "sft", "sft", "export"]


@pytest.mark.parametrize("moment", ["waiting", "starting", "running", "running and killed"])
def test_cancel_leaves_nothing_running(tmp_path: Path, job: job_pb2.JobConfig, hanging: Service, moment: str) -> None:
    with hanging.client() as client:
        first = client.submit(job)
        if moment == "waiting":
            job.name = "second"
            first = client.submit(job)
        if moment == "starting":
            until(lambda: launchers(hanging), "no launcher was started")
        if moment.startswith("running"):
            until_in_sft(client, first.id)
        if moment == "running and killed":
            for pid in launchers(hanging):
                os.kill(pid, signal.SIGKILL)
        client.cancel(first.id)
        done = client.wait(first.id)
        assert done.state == service_pb2.CANCELLED and not done.error
        if moment != "waiting":
            assert not launchers(hanging)
            assert runs.launcher_pid(RunFolder.of(done.config)) is None
            assert (Path(done.config.storage.root) / done.config.name / "released").is_file()
        assert client.cancel(first.id).state == service_pb2.CANCELLED


def test_service_that_hangs_is_replaced_and_writes_nothing_more(tmp_path: Path, job: job_pb2.JobConfig) -> None:
    """Two services on one store; the one with the job stands still for longer than its lease."""
    store = f'store: "sqlite:///{tmp_path}/jobs.sqlite"'
    environment = {"FINECUT_TEST_MISBEHAVE": f"hold:sft:{tmp_path}/go"}
    with running(tmp_path / "one", store, **environment) as one, one.client() as client:
        made = client.submit(job)
        until_in_sft(client, made.id)
        one.process.send_signal(signal.SIGSTOP)
        try:
            with running(tmp_path / "two", store, **environment) as two, two.client() as other:
                until(lambda: launchers(two), "the second service did not take over")
                assert not launchers(one), "two launchers work on one job"
                (tmp_path / "go").touch()
                assert other.wait(made.id).state == service_pb2.SUCCEEDED
                before = list(other.watch(made.id))
                one.process.send_signal(signal.SIGCONT)
                until(lambda: "the lease is lost" in one.log.read_text(), "the first service did not notice")
                assert list(other.watch(made.id)) == before
        finally:
            one.process.send_signal(signal.SIGCONT)
    assert calls(tmp_path) == ["prepare", "sft", "sft", "export"]


def test_second_service_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with running(tmp_path / "s") as service, pytest.raises(AssertionError, match="another service works in"):
        service.start()


def test_health_reflection_and_metrics_answer(tmp_path: Path, job: job_pb2.JobConfig) -> None:
    with running(tmp_path / "s") as service, service.client() as client:
        client.wait(client.submit(job).id)
        with grpc.insecure_channel(service.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(service="finecut.v1.JobService"), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            listed = next(stub.ServerReflectionInfo(iter([asked]), timeout=20)).list_services_response.service
            assert "finecut.v1.JobService" in {found.name for found in listed}
        page = urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics", timeout=20).read().decode()
        assert 'finecut_calls_total{code="OK",method="SubmitJob"} 1.0' in page
        assert 'finecut_jobs{state="SUCCEEDED"} 1.0' in page and "finecut_launchers_started_total 1.0" in page


def test_bytes_that_are_no_request_and_unknown_fields_are_the_callers_fault(
    tmp_path: Path, job: job_pb2.JobConfig
) -> None:
    newer = service_pb2.SubmitJobRequest(request_id="1", config=job).SerializeToString() + b"\xf8\x7f\x01"
    with running(tmp_path / "s") as service, grpc.insecure_channel(service.address) as channel:
        submit = channel.unary_unary("/finecut.v1.JobService/SubmitJob")
        for data, sentence in ((b"\xff\xff", "the bytes are damaged"), (newer, "has no field number 2047")):
            with pytest.raises(grpc.RpcError, match=sentence) as raised:
                submit(data, timeout=20)
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "Traceback" not in service.log.read_text()


def test_problems_of_a_config_arrive_with_their_paths_however_many(tmp_path: Path, job: job_pb2.JobConfig) -> None:
    job.stages[0].data_prep.sources[0].paths[:] = [f"/nowhere/{index}.jsonl" for index in range(300)]
    job.stages[1].sft.training.parallelism.tensor_parallel_size = -1
    with running(tmp_path / "s") as service, service.client() as client:
        with pytest.raises(ConfigError) as raised:
            client.submit(job)
        paths = [problem.path for problem in raised.value.problems]
        assert paths.count("stages[1].sft.training.parallelism.tensor_parallel_size") == 1
        assert sum(path.startswith("stages[0].data_prep.sources[0].paths") for path in paths) == 300


def test_list_goes_over_pages_and_refuses_garbage_tokens(tmp_path: Path, job: job_pb2.JobConfig) -> None:
    with running(tmp_path / "s", FINECUT_TEST_MISBEHAVE="hang:prepare") as service, service.client() as client:
        ids = []
        for index in range(120):
            job.name = f"job-{index}"
            ids.append(client.submit(job, str(index)).id)
        assert [found.id for found in client.jobs()] == ids[::-1]
        with grpc.insecure_channel(service.address) as channel:
            call = channel.unary_unary("/finecut.v1.JobService/ListJobs")
            for token in ("x", "AAAA", "é", "QUJD" * 100):
                request = service_pb2.ListJobsRequest(page_token=token)
                with pytest.raises(grpc.RpcError, match="page_token") as raised:
                    call(request.SerializeToString(), timeout=20)
                assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
