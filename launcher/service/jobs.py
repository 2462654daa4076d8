"""What the service's methods do, as plain calls; the servicer only carries them over gRPC."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf.message import Message

from finecut.launcher.planning import admission, plans
from finecut.launcher.providers import registry
from finecut.launcher.security.access import AccessDeniedError, Principal
from finecut.launcher.service import page_tokens, policy
from finecut.launcher.store.records import JobRecord, NewJob
from finecut.launcher.store.store import JobStore
from finecut.proto import job_pb2, service_pb2
from finecut.proto.config import ConfigError, Problem, UserError, rules, waves
from finecut.proto.run import RunFolder

_PAGE_SIZE = 50
_LONGEST_REQUEST_ID = 200


class JobNotFoundError(Exception):
    """There is no such job, or it is another principal's: a caller cannot tell which."""


class Jobs:
    """Jobs of one store.

    Args:
      runs: Folder below which runs are kept, a folder for each principal, when a job does not say.
      changed: Called with a job's id when something new can be seen of it, or can be done with it.
    """

    def __init__(self, store: JobStore, runs: Path, changed: Callable[[str], None]) -> None:
        self._store = store
        self._runs = runs
        self._changed = changed

    def submit(self, caller: Principal, request: service_pb2.SubmitJobRequest) -> service_pb2.Job:
        """Stores a job, once for each request id.

        Raises:
          ConfigError: With every problem of the config.
          RequestReusedError, FolderInUseError, QuotaError: See the store.
        """
        _check_request(request)
        if len(request.request_id) > _LONGEST_REQUEST_ID or "\0" in request.request_id:
            raise ConfigError(
                [Problem("request_id", f"must be 1 to {_LONGEST_REQUEST_ID} characters, none of them zero")]
            )
        with _below("config."):
            config = self._accept(caller, request.config)
            admission.check(config)
        serialized = config.SerializeToString(deterministic=True)
        job = self._store.submit(
            NewJob(
                principal=caller.name,
                request_id=request.request_id,
                config=serialized,
                config_digest=hashlib.sha256(serialized).hexdigest(),
                run_folder=str(RunFolder.of(config).root),
                stages=tuple(stage for wave in waves(config) for stage in wave),
            ),
            caller.max_active_jobs,
        )
        self._changed(job.id)
        return job.message()

    def get(self, caller: Principal, request: service_pb2.GetJobRequest) -> service_pb2.Job:
        """One job. Raises JobNotFoundError."""
        _check_request(request)
        return self.visible(caller, request.id).message()

    def list_jobs(self, caller: Principal, request: service_pb2.ListJobsRequest) -> service_pb2.ListJobsResponse:
        """A page of jobs, newest first. Raises ConfigError for a token that is none."""
        _check_request(request)
        principal = None if caller.sees_all else caller.name
        question = f"{principal} {request.state}"
        before = page_tokens.decode(request.page_token, question)
        size = request.page_size or _PAGE_SIZE
        found = self._store.list_jobs(principal, request.state, before, size + 1)
        response = service_pb2.ListJobsResponse(jobs=[job.message(with_config=False) for job in found[:size]])
        if len(found) > size:
            response.next_page_token = page_tokens.encode(found[size - 1].number, question)
        return response

    def cancel(self, caller: Principal, request: service_pb2.CancelJobRequest) -> service_pb2.Job:
        """Asks a job to stop. Raises JobNotFoundError."""
        _check_request(request)
        job = self.visible(caller, request.id)
        if job.principal != caller.name and not caller.sees_all:
            raise AccessDeniedError(f"{caller.name} may not cancel jobs of {job.principal}")
        cancelled = self._store.request_cancel(request.id)
        assert cancelled is not None, "jobs are never removed"
        self._changed(request.id)
        return cancelled.message()

    def validate(self, caller: Principal, request: service_pb2.ValidateJobRequest) -> service_pb2.ValidateJobResponse:
        """All problems of a config, which are the answer here and no error."""
        _check_request(request)
        try:
            admission.check(self._accept(caller, request.config))
        except ConfigError as error:
            return service_pb2.ValidateJobResponse(
                problems=[service_pb2.Problem(path=found.path, message=found.message) for found in error.problems]
            )
        return service_pb2.ValidateJobResponse()

    def plan(self, caller: Principal, request: service_pb2.PlanJobRequest) -> service_pb2.PlanJobResponse:
        """What a job would do and take, also where it would be refused. Raises ConfigError."""
        _check_request(request)
        with _below("config."):
            config = self._accept(caller, request.config)
        try:
            return plans.of_job(config, request.hardware)
        except UserError as error:
            raise ConfigError([Problem("hardware", str(error).removeprefix("hardware: "))]) from None

    def visible(self, caller: Principal, job_id: str) -> JobRecord:
        """The job, if it exists for this caller. Raises JobNotFoundError."""
        job = self._store.get(job_id) if "\0" not in job_id else None
        if job is None or not (caller.sees_all or job.principal == caller.name):
            raise JobNotFoundError(job_id)
        return job

    def _accept(self, caller: Principal, sent: job_pb2.JobConfig) -> job_pb2.JobConfig:
        """The resolved job, once its config, its caller's rights and the machines that it names allow it."""
        config = policy.accept(sent, caller, self._runs / caller.name)
        registry.plan(config)
        return config


@contextmanager
def _below(prefix: str) -> Iterator[None]:
    """Problems of a config as those of the request that holds it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(Problem(prefix + found.path, found.message) for found in error.problems) from None


def _check_request(request: Message) -> None:
    """The rules of the request's own fields; a config in it is checked when it is resolved."""
    problems = [found for found in policy.unknown_fields(request) if not found.path.startswith("config")]
    own = type(request)()
    own.CopyFrom(request)
    if "config" in request.DESCRIPTOR.fields_by_name:
        has_config = request.HasField("config")
        own.ClearField("config")
        if not has_config:
            problems.append(Problem("config", "is required and not set"))
    problems += [problem for problem in rules.check(own) if problem.path != "config"]
    if problems:
        raise ConfigError(problems)
