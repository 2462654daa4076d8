"""What a store keeps and answers, as plain values."""

from dataclasses import dataclass

from finecut.proto import job_pb2, service_pb2


class RequestReusedError(Exception):
    """The request id belongs to a job with another config."""


class FolderInUseError(Exception):
    """An active job works in the same run folder."""


class QuotaError(Exception):
    """The principal has as many active jobs as it may have."""


class LeaseLostError(Exception):
    """Another service has the job now, or it has ended; nothing was written."""


@dataclass(frozen=True)
class NewJob:
    """A job to be stored.

    Attributes:
      principal: Who submits it.
      request_id: Chosen by the caller, unique among the principal's.
      config: Serialized, resolved JobConfig.
      config_digest: Equal for configs that mean the same.
      run_folder: Where the run will be.
      stages: In the order they run, all pending.
    """

    principal: str
    request_id: str
    config: bytes
    config_digest: str
    run_folder: str
    stages: tuple[str, ...]


@dataclass(frozen=True)
class JobRecord:
    """A job as it is stored. Attributes that a NewJob has too mean the same.

    Attributes:
      stages: Serialized service_pb2.Job that holds only the stages.
      created_at: Seconds since 1970, as `ended_at`.
      attempts: How often a launcher was started for it since it last made progress.
      fence: Number of its newest lease.
      sequence: Number of its newest event.
      positions: JSON of what its last owner had read of the run's logs, and of how far the run had come.
    """

    number: int
    id: str
    principal: str
    request_id: str
    config: bytes
    config_digest: str
    run_folder: str
    state: int
    error: str
    stages: bytes
    created_at: float
    ended_at: float | None
    cancel_requested: int
    attempts: int
    fence: int
    sequence: int
    positions: str

    @property
    def is_active(self) -> bool:
        return self.state in (service_pb2.PENDING, service_pb2.RUNNING)

    def job_config(self) -> job_pb2.JobConfig:
        """The resolved config."""
        return job_pb2.JobConfig.FromString(self.config)

    def message(self, with_config: bool = True) -> service_pb2.Job:
        """The job as the service shows it; without its config in lists, which would be too long."""
        job = service_pb2.Job.FromString(self.stages)
        job.id, job.principal, job.error = self.id, self.principal, self.error
        job.state = self.state  # type: ignore[assignment]
        job.cancel_requested = bool(self.cancel_requested)
        job.last_sequence = self.sequence
        job.created_at.FromNanoseconds(round(self.created_at * 1e9))
        if self.ended_at is not None:
            job.ended_at.FromNanoseconds(round(self.ended_at * 1e9))
        if with_config:
            job.config.MergeFromString(self.config)
        return job


@dataclass(frozen=True)
class Lease:
    """The right to act for a job until `seconds` after it was asked for."""

    job: JobRecord
    fence: int
    seconds: float


@dataclass(frozen=True)
class Progress:
    """What a lease's holder writes at once: new events, and how far the logs were read for them.

    Attributes:
      events: Without sequence numbers.
      stages: See JobRecord.
      has_advanced: Work was done: failed attempts before it no longer count.
    """

    events: tuple[service_pb2.JobEvent, ...]
    stages: bytes
    positions: str
    has_advanced: bool
