"""Run folders: one launcher at a time, one config for good, and what is known about a run from the outside."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format

from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import UserError, diff, load_resolved, places
from finecut.proto.config.walk import rule_of
from finecut.proto.run import RunFolder, artifacts, files, fingerprint

_HEADER = """\
# proto-file: finecut/proto/job.proto
# proto-message: finecut.v1.JobConfig
#
# The resolved config of this run: every default written out. Resuming with another config is refused.

"""


@contextmanager
def opened(job: job_pb2.JobConfig) -> Iterator[RunFolder]:
    """Creates or continues the run of a resolved job, and keeps other launchers out for as long as it is open.

    Raises:
      UserError: Storage that cannot be written, another launcher at work, or a run with another config or other code.
        Nothing is changed then.
    """
    folder = RunFolder.of(job)
    _check_writable(folder.root)
    if folder.config.exists():
        _check_same_job(folder, job)  # before the lock file, so that a refusal touches nothing
    with _locked(folder):
        if folder.config.exists():
            _check_same_job(folder, job)  # again, now that nobody else can write it
        stored = job_pb2.JobConfig()
        stored.CopyFrom(job)
        stored.accept_other_code = False  # it is said anew each time
        text = _HEADER + text_format.MessageToString(stored)
        if not folder.config.exists() or folder.config.read_text(encoding="utf-8") != text:
            files.write_atomically(folder.config, text)
        if stored_code(folder) != fingerprint.code_version():
            files.write_atomically(_code_path(folder), fingerprint.code_version())
        yield folder


def storage_root(given: str | None) -> Path:
    """`given`, or the default one, as an absolute path seen from where the user stands."""
    root = given or rule_of(job_pb2.Storage.DESCRIPTOR.fields_by_name["root"]).default
    return Path(os.path.normpath(places.user_folder() / Path(root).expanduser()))


def find(storage_root: Path, name: str) -> RunFolder:
    """The run called `name`.

    Raises:
      UserError: There is none; the message names those that are there.
    """
    folder = RunFolder(storage_root / name)
    if folder.config.is_file():
        return folder
    names = ", ".join(run.root.name for run in list_runs(storage_root)) or "none"
    raise UserError(f"{storage_root} holds no run {name!r} (runs there: {names}); check the name and --storage_root")


def list_runs(storage_root: Path) -> list[RunFolder]:
    """Every run below a storage root, by name."""
    return [RunFolder(path.parent) for path in sorted(storage_root.glob("*/job.textproto"))]


def launcher_pid(folder: RunFolder) -> int | None:
    """Process id of the launcher that is at work on a run, or None."""
    try:
        descriptor = os.open(_lock_path(folder), os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _read_pid(descriptor)
    finally:
        os.close(descriptor)


def finished_artifact(job: job_pb2.JobConfig, stage: str) -> artifact_pb2.Artifact | None:
    """The stage's artifact, if it is there, whole, and made from this job's settings."""
    try:
        artifact = artifacts.read(RunFolder.of(job).artifact(stage))
    except UserError:
        return None
    return artifact if artifact.fingerprints.config == fingerprint.of_stage(job, stage) else None


def identity(job: job_pb2.JobConfig) -> str:
    """The run's name with a hash of all that decides what is computed; equal for equal work."""
    digest = hashlib.sha256("".join(fingerprint.of_stage(job, stage.name) for stage in job.stages).encode())
    return f"{job.name}-{digest.hexdigest()[:16]}"


@contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """Holds the run's lock; the kernel releases it when this process ends, however it ends."""
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(_lock_path(folder), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:  # a read-only or special file system, a full disk
        raise _unwritable(folder.root, f"{error.filename}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder.root} is in use by another launcher (process {_read_pid(descriptor)}); "
                "wait for it, stop it, or use another job name"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock_path(folder: RunFolder) -> Path:
    return folder.root / "launcher.lock"


def _read_pid(descriptor: int) -> int:
    return int(os.pread(descriptor, 20, 0) or b"0")


def _check_writable(root: Path) -> None:
    """Refuses a folder that cannot be created or written, without creating anything."""
    existing = next(path for path in (root, *root.parents) if os.path.lexists(path))
    if not existing.is_dir():
        reason = os.strerror(errno.ENOTDIR)
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES)
    else:
        return
    raise _unwritable(root, f"{existing}: {reason}")


def _unwritable(root: Path, reason: str) -> UserError:
    return UserError(
        f"storage.root: {str(root.parent)!r} cannot be written ({reason}); "
        "choose a folder that you can write, with --storage_root or storage.root"
    )


def _check_same_job(folder: RunFolder, job: job_pb2.JobConfig) -> None:
    changes = diff(load_resolved(folder.config), job)
    if changes:
        listed = "\n".join(f"  {change}" for change in changes)
        raise UserError(
            f"{folder.root} was started with another config:\n{listed}\n"
            "undo these changes to continue it, or change the job's name to start a new run"
        )
    stored, code = stored_code(folder), fingerprint.code_version()
    if stored not in (None, code) and not job.accept_other_code:
        raise UserError(
            f"{folder.root} was started by other code:\n  code version: {stored} -> {code}\n"
            "run that version to continue it, or accept that results may differ with --set accept_other_code=true"
        )


def _code_path(folder: RunFolder) -> Path:
    return folder.root / "code_version"


def stored_code(folder: RunFolder) -> str | None:
    """Version of the code that worked on a run last; None: it is new, or older than this check."""
    try:
        return _code_path(folder).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
