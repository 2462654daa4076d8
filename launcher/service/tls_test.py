"""Who gets in: certificates, principals, roles, quotas and folders, over real connections."""

import contextlib
import datetime
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from finecut.launcher import testing
from finecut.launcher.client import JobClient, ServiceError
from finecut.launcher.security.authority import Authority
from finecut.launcher.service.testing import Service, running
from finecut.proto import job_pb2
from finecut.proto.config import ConfigError, UserError, load_submission

CALLERS = ("ann", "bob", "viewer", "operator", "stranger")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    config = f"""
    principals {{ name: "ann" max_active_jobs: 2 folders: "{folder}/ann" }}
    principals {{ name: "bob" }}
    principals {{ name: "viewer" role: VIEWER }}
    principals {{ name: "operator" role: OPERATOR }}
    """
    with running(folder, config, CALLERS, FINECUT_TEST_MISBEHAVE="hang:prepare") as service:
        yield service


@pytest.fixture
def job(folder: Path, request: pytest.FixtureRequest) -> job_pb2.JobConfig:
    """A job in ann's folder, with a name of its own."""
    job = load_submission(testing.write_job(folder / "ann"))
    job.name = f"job-{abs(hash(request.node.name))}"
    return job


def refusal(client: JobClient, job_id: str = "x") -> ServiceError:
    with client, pytest.raises(ServiceError) as raised:
        client.get(job_id)
    return raised.value


def test_own_job_is_seen_and_cancelled_and_others_do_not_find_it(service: Service, job: job_pb2.JobConfig) -> None:
    with service.client("ann") as ann, service.client("bob") as bob:
        made = ann.submit(job)
        assert made.principal == "ann" and ann.get(made.id).id == made.id
        assert made.id not in {found.id for found in bob.jobs()}
        for call in (bob.get, bob.cancel, lambda job_id: list(bob.watch(job_id))):
            with pytest.raises(ServiceError, match="there is no job") as raised:
                call(made.id)
            assert raised.value.code is grpc.StatusCode.NOT_FOUND
        ann.cancel(made.id)
        ann.wait(made.id)  # the quota counts it until nothing of it runs


def test_roles_decide_what_may_be_called(service: Service, job: job_pb2.JobConfig) -> None:
    with service.client("bob") as bob, service.client("viewer") as viewer, service.client("operator") as operator:
        made = bob.submit(job)
        assert viewer.get(made.id).id == made.id
        for refused in (lambda: viewer.cancel(made.id), lambda: viewer.submit(job), lambda: viewer.validate(job)):
            with pytest.raises(ServiceError, match="is a VIEWER, who may not call") as raised:
                refused()
            assert raised.value.code is grpc.StatusCode.PERMISSION_DENIED
        assert operator.cancel(made.id).cancel_requested


def test_quota_is_each_principals_own(service: Service, job: job_pb2.JobConfig) -> None:
    name = job.name
    with service.client("ann") as ann, service.client("bob") as bob:
        made = []
        for index in range(2):
            job.name = f"{name}-{index}"
            made.append(ann.submit(job).id)
        job.name = f"{name}-2"
        with pytest.raises(ServiceError, match="quota") as raised:
            ann.submit(job)
        assert raised.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        made_by_bob = bob.submit(job)
        bob.cancel(made_by_bob.id)
        for each in made:
            ann.cancel(each)
        for each in made:
            ann.wait(each)


def test_files_of_others_are_refused_without_a_word_on_whether_they_exist(
    service: Service, job: job_pb2.JobConfig, folder: Path
) -> None:
    (folder / "ann" / "link").unlink(missing_ok=True)
    (folder / "ann" / "link").symlink_to("/etc")
    elsewhere = ["/etc/passwd", "/etc/nothing-here", f"{folder}/ann/../x.jsonl", f"{folder}/ann/link/passwd", "/*"]
    job.stages[0].data_prep.sources[0].paths[:] = [*elsewhere, "chat.jsonl", "s3://me:secret@bucket/x.jsonl"]
    with service.client("ann") as ann, pytest.raises(ConfigError) as raised:
        ann.submit(job)
    messages = {problem.path.rpartition(".")[2]: problem.message for problem in raised.value.problems}
    for index in range(len(elsewhere)):
        assert "is outside of what ann may use" in messages[f"paths[{index}]"]
    assert "is relative, and a service does not stand where you do" in messages["paths[5]"]
    assert "holds a password" in messages["paths[6]"] and "secret" not in str(raised.value)


def test_certificate_of_another_authority_or_an_expired_one_does_not_connect(service: Service, folder: Path) -> None:
    other = Authority.create(folder / "other-authority").mint("ann", [], datetime.timedelta(hours=1))
    other.write(folder / "other", service.authority.trusted_pem)
    service.certify("late", lifetime=datetime.timedelta(microseconds=1))
    for certificates in (folder / "other", service.certificates("late")):
        error = refusal(JobClient(service.address, certificates))
        assert error.code is grpc.StatusCode.UNAVAILABLE and "is your certificate one that it trusts" in str(error)


def test_stranger_with_a_good_certificate_is_refused(service: Service) -> None:
    error = refusal(service.client("stranger"))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED and "'stranger' belongs to no principal" in str(error)


def test_plain_text_and_clients_without_certificate_do_not_connect(service: Service) -> None:
    assert refusal(JobClient(service.address)).code is grpc.StatusCode.UNAVAILABLE
    credentials = grpc.ssl_channel_credentials(service.authority.trusted_pem)
    with grpc.secure_channel(service.address, credentials) as channel, pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary("/finecut.v1.JobService/ListJobs")(b"", timeout=300)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_new_certificates_are_taken_without_a_restart(service: Service, folder: Path) -> None:
    def serial() -> str:
        context = ssl.create_default_context(cafile=str(service.certificates("ann") / "authority.pem"))
        context.load_cert_chain(
            service.certificates("ann") / "certificate.pem", service.certificates("ann") / "key.pem"
        )
        host, port = service.address.split(":")
        with context.wrap_socket(socket.create_connection((host, int(port)), 20), server_hostname=host) as connection:
            certificate = connection.getpeercert()
            assert certificate is not None
            return str(certificate["serialNumber"])

    before = serial()
    service.authority = service.authority.rotate()
    service.certify("service", ["127.0.0.1"])
    for caller in CALLERS:
        service.certify(caller)
    assert serial() != before
    with service.client("ann") as ann:
        list(ann.jobs())
    (service.certificates("service") / "certificate.pem").write_text("damaged")
    assert serial() != before, "the last good certificate stays in use"
    service.certify("service", ["127.0.0.1"])


def test_key_that_others_can_read_is_refused(service: Service) -> None:
    key = service.certificates("ann") / "key.pem"
    key.chmod(0o644)
    try:
        with pytest.raises(UserError, match="can be read by others; chmod 600 it"):
            service.client("ann")
    finally:
        key.chmod(0o600)


def test_another_machine_needs_certificates() -> None:
    with pytest.raises(UserError, match="is another machine, which needs TLS"):
        JobClient("192.0.2.1:7400")


def test_nothing_secret_is_in_the_log_the_store_or_a_command_line(service: Service, job: job_pb2.JobConfig) -> None:
    with service.client("bob") as bob:
        bob.cancel(bob.submit(job).id)
    written = service.log.read_bytes() + b"".join(path.read_bytes() for path in service.state.glob("jobs.sqlite*"))
    keys = [path.read_bytes().splitlines()[1] for path in service.certificates("ann").parent.glob("*/key.pem")]
    commands = b"".join(_command_lines())
    assert len(keys) >= len(CALLERS) and not [key for key in keys if key in written + commands]


def _command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            yield path.read_bytes()
