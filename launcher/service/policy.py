"""From a config as it was sent to one that may run: what a service asks of a job beyond what makes it valid."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from finecut.launcher.security.access import Principal
from finecut.proto import job_pb2
from finecut.proto.config import ConfigError, Problem, places, resolve
from finecut.proto.config.build import is_map, join

MAX_STAGES = 200
_WILDCARD = re.compile(r"[*?\[]")


def accept(sent: job_pb2.JobConfig, caller: Principal, storage_root: Path) -> job_pb2.JobConfig:
    """The resolved job. Files are looked for only once it is clear that the caller may know of them.

    Args:
      storage_root: Where the caller's runs go when the job does not say.

    Raises:
      ConfigError: With every problem found.
    """
    job = job_pb2.JobConfig()
    job.CopyFrom(sent)
    if not job.storage.root:
        job.storage.root = str(storage_root)
        caller_names_root = False
    else:
        caller_names_root = True
    problems = [*unknown_fields(sent), *_check_places(job, caller, caller_names_root)]
    if len(job.stages) > MAX_STAGES:
        problems.append(Problem("stages", f"has {len(job.stages):,} of them; {MAX_STAGES} are the most"))
    if problems:
        raise ConfigError(problems)
    return resolve(job, base_dir=storage_root)


def unknown_fields(message: Message) -> Iterator[Problem]:
    """Fields that the sender knows and this contract does not: ignoring them would do something else than was asked."""
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    if known.ByteSize() != message.ByteSize():  # looking closer is slow
        yield from _unknown(message, "")


def _unknown(message: Message, path: str) -> Iterator[Problem]:
    for field in UnknownFieldSet(message):
        sentence = f"{message.DESCRIPTOR.name} has no field number {field.field_number}; this service is older or newer"
        yield Problem(path, sentence + " than the sender's contract, or the message is damaged")
    for field, value in message.ListFields():
        if not field.message_type or is_map(field):
            continue
        where = join(path, field.name)
        if field.is_repeated:
            for index, item in enumerate(value):
                yield from _unknown(item, f"{where}[{index}]")
        else:
            yield from _unknown(value, where)


def _check_places(job: job_pb2.JobConfig, caller: Principal, caller_names_root: bool) -> Iterator[Problem]:
    for found in places.references(job):
        if found.path == "storage.root" and not caller_names_root:
            continue
        if "\0" in found.value:
            yield Problem(found.path, "holds a zero byte, which no path has; remove it")
        elif places.is_remote(found.value):
            if _holds_password(found.value):
                yield Problem(found.path, "holds a password, which would be stored; give the service access instead")
        else:
            path = found.value.removeprefix("file://")
            if not os.path.isabs(path):
                yield Problem(
                    found.path,
                    f'"{found.value}" is relative, and a service does not stand where you do; write it whole',
                )
            elif not _is_within(path, caller.folders):
                allowed = ", ".join(caller.folders)
                yield Problem(found.path, f'"{found.value}" is outside of what {caller.name} may use: {allowed}')


def _holds_password(url: str) -> bool:
    try:
        return urlsplit(url).password is not None
    except ValueError:
        return "@" in url


def _is_within(path: str, folders: tuple[str, ...]) -> bool:
    """Whether a path, or all that a pattern can match, lies in one of the folders, links followed."""
    if not folders:
        return True
    fixed = _WILDCARD.split(path, maxsplit=1)[0]
    if fixed != path:
        fixed = fixed.rpartition("/")[0] or "/"
    if ".." in Path(path).parts:
        return False
    real = Path(os.path.realpath(fixed))
    return any(real.is_relative_to(os.path.realpath(each)) for each in folders)
