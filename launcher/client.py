"""A typed client of the launcher's service, for programs.

    with JobClient("jobs.example.org:7400", certificates=Path("ann")) as client:
        job = client.submit(config, request_id="nightly-2026-11-22")
        for event in client.watch(job.id):
            print(event)

Every call has a deadline and is tried again, a few times, when the service cannot be reached: all of them can be
repeated, submissions because of their request id.
"""

import random
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from finecut.launcher.security import tls
from finecut.launcher.security.access import is_loopback
from finecut.launcher.service import details
from finecut.proto import job_pb2, service_pb2
from finecut.proto.config import ConfigError, Problem, UserError

DEADLINE_SECONDS = 30.0
_ATTEMPTS = 5
_WATCH_ATTEMPTS = 25  # in a row without an event: two minutes, in which a service is started again
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each client, not one for the whole process
_AGAIN = (grpc.StatusCode.UNAVAILABLE,)
_SERVICE = service_pb2.DESCRIPTOR.services_by_name["JobService"]


class ServiceError(Exception):
    """The service refused a call, or could not be reached.

    Attributes:
      code: What kind of error it is.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class JobClient:
    """Calls of one service; may be used from any thread.

    Args:
      address: HOST:PORT.
      certificates: Folder with certificate.pem, key.pem and authority.pem. None: no TLS, for services on this machine.

    Raises:
      UserError: Certificates that cannot be used, or none for another machine.
    """

    def __init__(self, address: str, certificates: Path | None = None, deadline: float = DEADLINE_SECONDS) -> None:
        if certificates is None and not is_loopback(address):
            raise UserError(f"{address} is another machine, which needs TLS; name the folder of your certificate")
        self.address = address
        self._deadline = deadline
        self._channel = (
            grpc.secure_channel(address, tls.client_credentials(certificates), _OPTIONS)
            if certificates
            else grpc.insecure_channel(address, _OPTIONS)
        )
        self._methods = {method.name: _method(self._channel, method) for method in _SERVICE.methods}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def submit(self, config: job_pb2.JobConfig, request_id: str | None = None) -> service_pb2.Job:
        """Submits a job. The same request id and config again: the same job.

        Raises:
          ConfigError: With the problems of the config.
          ServiceError: ALREADY_EXISTS where the id belongs to another config, RESOURCE_EXHAUSTED over the quota, ...
        """
        request = service_pb2.SubmitJobRequest(request_id=request_id or secrets.token_hex(16), config=config)
        try:
            return self._call("SubmitJob", request)
        except ConfigError:
            if problems := self.validate(config):  # the status has room for the first few only
                raise ConfigError(problems) from None
            raise

    def get(self, job_id: str) -> service_pb2.Job:
        """One job."""
        return self._call("GetJob", service_pb2.GetJobRequest(id=job_id))

    def jobs(self, state: "service_pb2.JobState" = service_pb2.JOB_STATE_UNSPECIFIED) -> Iterator[service_pb2.Job]:
        """All jobs that the caller may see, newest first, fetched page by page; without their configs."""
        request = service_pb2.ListJobsRequest(state=state)
        while True:
            page = self._call("ListJobs", request)
            yield from page.jobs
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def watch(self, job_id: str, after_sequence: int = 0) -> Iterator[service_pb2.JobEvent]:
        """A job's events after a position, until the job has ended. A lost connection is made again.

        Raises:
          ServiceError: There is no such job, or the service stays unreachable.
        """
        failures = 0
        while True:
            request = service_pb2.WatchJobRequest(id=job_id, after_sequence=after_sequence)
            try:
                for event in self._methods["WatchJob"](request):
                    failures, after_sequence = 0, event.sequence
                    yield event
                return
            except grpc.RpcError as error:
                failures += 1
                if _code(error) not in _AGAIN or failures >= _WATCH_ATTEMPTS:
                    raise _translated(error, self.address) from None
            _pause(failures)

    def wait(self, job_id: str) -> service_pb2.Job:
        """The job once it has ended."""
        for _ in self.watch(job_id):
            pass
        return self.get(job_id)

    def cancel(self, job_id: str) -> service_pb2.Job:
        """Asks a job to stop; see Job.cancel_requested."""
        return self._call("CancelJob", service_pb2.CancelJobRequest(id=job_id))

    def validate(self, config: job_pb2.JobConfig) -> list[Problem]:
        """All problems of a config, with paths that start at the config."""
        response = self._call("ValidateJob", service_pb2.ValidateJobRequest(config=config))
        return [Problem(problem.path, problem.message) for problem in response.problems]

    def plan(self, config: job_pb2.JobConfig, hardware: str = "") -> service_pb2.PlanJobResponse:
        """What the job would do and take, on other devices than it would get where `hardware` is set.

        Raises ConfigError.
        """
        return self._call("PlanJob", service_pb2.PlanJobRequest(config=config, hardware=hardware))

    def _call(self, method: str, request: Message) -> Any:
        attempt = 1
        while True:
            try:
                return self._methods[method](request, timeout=self._deadline)
            except grpc.RpcError as error:
                if _code(error) not in _AGAIN or attempt == _ATTEMPTS:
                    raise _translated(error, self.address) from None
            _pause(attempt)
            attempt += 1


def _method(channel: grpc.Channel, method: MethodDescriptor) -> Callable[..., Any]:
    make = channel.unary_stream if method.server_streaming else channel.unary_unary
    return make(
        f"/{_SERVICE.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )


def _pause(attempt: int) -> None:
    """Longer each time, and not the same for all whom one failure has hit."""
    time.sleep(min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**attempt) * random.uniform(0.5, 1.0))


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    return error.code()


def _translated(error: grpc.RpcError, address: str) -> Exception:
    """ConfigError for a config's problems, ServiceError for everything else."""
    assert isinstance(error, grpc.Call)
    code, text = error.code(), error.details() or ""
    packed = dict(error.trailing_metadata() or ()).get(details.KEY)
    if code is grpc.StatusCode.INVALID_ARGUMENT and packed:
        found = details.unpack(packed)
        return ConfigError(Problem(problem.path.removeprefix("config."), problem.message) for problem in found)
    if code is grpc.StatusCode.UNAVAILABLE:
        hint = "is it running, and is your certificate one that it trusts and that is still valid?"
        return ServiceError(
            code, f"{address} cannot be reached ({text.splitlines()[0] if text else 'no answer'}); {hint}"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ServiceError(code, f"{address} did not answer in time; try again")
    return ServiceError(code, text or code.name)
