"""What the user asked for, and how a job is found from it."""

from dataclasses import dataclass
from pathlib import Path

from finecut.launcher import runs
from finecut.proto import job_pb2
from finecut.proto.config import UserError, load_job, load_resolved


@dataclass(frozen=True)
class Request:
    """The command line, parsed. Example: `resume quickstart` has verb "resume" and run "quickstart"."""

    verb: str
    run: str | None = None
    config: str | None = None
    storage_root: str | None = None
    overrides: tuple[str, ...] = ()
    json: bool = False
    hardware: str | None = None
    server: str | None = None
    certificates: str | None = None
    request_id: str | None = None
    follow: bool = False
    service_config: str | None = None
    insecure_loopback: bool = False
    watch: bool = False


def job_from_config(request: Request) -> job_pb2.JobConfig:
    """The resolved job of --config.

    Raises:
      UserError: No --config, a run's name where none belongs, or every problem of the job.
    """
    if request.run is not None:
        raise UserError(f"{request.verb} takes no argument {request.run!r}; name the job file with --config")
    if request.config is None:
        raise UserError(f"--config is not set; name a job file, for example: {request.verb} --config=job.textproto")
    return load_job(request.config, overrides=request.overrides, storage_root=request.storage_root)


def job_from_config_or_run(request: Request) -> job_pb2.JobConfig:
    """The resolved job of --config, or the one stored in the run that is named.

    Raises:
      UserError: Both or neither are given, no such run, or every problem of the job.
    """
    if request.run is None:
        return job_from_config(request)
    if request.config is not None:
        raise UserError(f"both --config and the run {request.run!r} are given; leave one of them out")
    folder = runs.find(storage_root(request), request.run)
    if request.overrides:
        return load_job(folder.config, overrides=request.overrides, storage_root=str(folder.root.parent))
    # Not checked again: the sources of stages that are finished may be gone by now.
    job = load_resolved(folder.config)
    job.storage.root = str(folder.root.parent)  # the folder may have been moved
    return job


def storage_root(request: Request) -> Path:
    """--storage_root, or the default one, as an absolute path seen from where the user stands."""
    return runs.storage_root(request.storage_root)
