"""From a job file to a resolved job: read, override, merge, make absolute, check. All problems come at once."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message

from finecut.proto import job_pb2
from finecut.proto.config import build, checks, defaults, graph, overrides, places, rules, text_reader, yaml_reader
from finecut.proto.config.errors import ConfigError, Problem, UserError
from finecut.proto.config.tree import Node

M = TypeVar("M", bound=Message)

_YAML_ENDINGS = (".yaml", ".yml")


def load_job(path: str | Path, overrides: Iterable[str] = (), storage_root: str | None = None) -> job_pb2.JobConfig:
    """Reads, resolves and checks a job file (text format, or YAML by its ending).

    Args:
      path: The file; relative to where the user stands.
      overrides: "PATH=VALUE" strings that win over the file.
      storage_root: Wins over the job's storage.root.

    Raises:
      ConfigError: With every problem found.
    """
    base = places.user_folder()
    job = job_pb2.JobConfig()
    problems = build.fill(job, _read(base / Path(path).expanduser()))
    problems += _override(job, overrides, storage_root)
    return _finish(job, base, problems)


def load_manifest(
    path: str | Path, overrides: Iterable[str] = (), storage_root: str | None = None
) -> job_pb2.JobConfig:
    """Reads, resolves and checks a manifest of data alone (DataManifest); arguments and errors as those of load_job.

    Returns:
      A job whose only stage is "prepare".
    """
    base = places.user_folder()
    manifest = job_pb2.DataManifest()
    problems = build.fill(manifest, _read(base / Path(path).expanduser()))
    problems += _override(manifest, overrides, storage_root)
    if not manifest.HasField("data_prep"):
        raise ConfigError([*problems, Problem("data_prep", "is required")])
    job = job_pb2.JobConfig(name=manifest.name)
    job.stages.add(name="prepare").data_prep.CopyFrom(manifest.data_prep)
    if manifest.HasField("storage"):
        job.storage.CopyFrom(manifest.storage)
    try:
        return _finish(job, base, problems)
    except ConfigError as error:
        found = (replace(problem, path=problem.path.removeprefix("stages[0].")) for problem in error.problems)
        raise ConfigError(found) from None


def load_submission(
    path: str | Path, overrides: Iterable[str] = (), storage_root: str | None = None
) -> job_pb2.JobConfig:
    """Reads a job file that a service will resolve: only its syntax is checked, as its files may be there and not here.

    Relative paths become absolute, because the service stands elsewhere. Arguments and errors are those of load_job.
    """
    base = places.user_folder()
    job = job_pb2.JobConfig()
    problems = build.fill(job, _read(base / Path(path).expanduser()))
    problems += _override(job, overrides, storage_root)
    if problems:
        raise ConfigError(problems)
    places.anchor(job, base)
    return job


def load_message(path: str | Path, message: M) -> M:
    """Fills any message of the contract from a file, with its defaults, and checks it against its fields' rules.

    Raises:
      ConfigError: With every problem found.
    """
    problems = build.fill(message, _read(places.user_folder() / Path(path).expanduser()))
    defaults.fill(message)
    problems += rules.check(message)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return message


def resolve(job: job_pb2.JobConfig, base_dir: Path | None = None) -> job_pb2.JobConfig:
    """Resolves and checks a job that is a message already; the argument is left alone.

    Raises:
      ConfigError: With every problem found.
    """
    copy = job_pb2.JobConfig()
    copy.CopyFrom(job)
    return _finish(copy, base_dir or places.user_folder(), [])


def load_resolved(path: Path) -> job_pb2.JobConfig:
    """Reads back a job that was stored resolved, without checking places again.

    Raises:
      UserError: The file is missing or damaged.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), job_pb2.JobConfig())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; start the run first") from None
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise UserError(f"{path} cannot be read back: {error}") from error


def _read(path: Path) -> Node:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([Problem("", f"the job file {path} does not exist")]) from None
    except IsADirectoryError:
        raise ConfigError([Problem("", f"{path} is a folder; name the job file in it")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Problem("", f"the job file {path} is not UTF-8 text (byte {error.start})")]) from None
    except OSError as error:
        raise ConfigError([Problem("", f"the job file {path} cannot be read: {error.strerror}")]) from None
    reader = yaml_reader if path.suffix in _YAML_ENDINGS else text_reader
    return reader.read(text, path.name)


def _override(
    job: job_pb2.JobConfig | job_pb2.DataManifest, changes: Iterable[str], storage_root: str | None
) -> list[Problem]:
    problems = overrides.apply(job, changes)
    if storage_root:
        job.storage.root = storage_root
    return problems


def _finish(job: job_pb2.JobConfig, base: Path, problems: list[Problem]) -> job_pb2.JobConfig:
    """Merges, resolves and checks in place; raises if anything is wrong, here or before."""
    problems = list(problems)
    problems += rules.check(job.defaults, "defaults")
    defaults.merge_job_defaults(job)
    defaults.fill(job)
    defaults.fill_learning_rates(job)
    defaults.fill_messages_fields(job)
    known = {problem.path.removeprefix("defaults.") for problem in problems}
    # A bad default is reported once, where it was written, not again in each stage that takes it.
    problems += [p for p in rules.check(job) if not any(p.path.endswith(f".training.{path}") for path in known)]
    problems += graph.check(job)
    problems += places.make_absolute(job, base)
    problems += checks.check(job)
    problems += places.check(job)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return job
