"""Code of the user's that a job names by import path: where it is, what it says of itself, and how it is called.

job.code.paths --snapshot--> <run>/code/<digest>  shared with all machines, as the run's folder is
               --use-------> sys.path             in every process that runs a stage
UserCode       --make------> what the stage works with; whatever is wrong with it is told in a sentence
"""

import hashlib
import importlib
import inspect
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from finecut.proto import extension_pb2, job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import fingerprint
from finecut.proto.run.folder import RunFolder

_FOLDER = "code"
_FIELD = "code.paths"
_LARGEST_BYTES = 64 << 20  # more is data, which the code should read from where it is


def use(paths: Sequence[str]) -> None:
    """Has this process import from these folders before all others."""
    sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]


def snapshot(job: job_pb2.JobConfig) -> job_pb2.JobConfig:
    """The job with its code as it is now, copied into the run's folder, so that no machine sees another version.

    Raises UserError where there is too much of it.
    """
    if not job.code.paths:
        return job
    target = RunFolder.of(job).root / _FOLDER / _digest(job.code.paths)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=target.parent))
        for number, path in enumerate(job.code.paths):
            for file in _files(Path(path)):
                copy = draft / str(number) / file.relative_to(path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        if not target.exists():
            os.replace(draft, target)
    copied = job_pb2.JobConfig.FromString(job.SerializeToString())
    copied.code.paths[:] = [str(target / str(number)) for number in range(len(job.code.paths))]
    return copied


def version(job: job_pb2.JobConfig) -> str:
    """Version of the code that makes an artifact: Finecut's, and a short hash of the user's where there is any."""
    own = fingerprint.code_version()
    return f"{own}.{_digest(job.code.paths)[:12]}" if job.code.paths else own


def make(code: extension_pb2.UserCode, field: str, *arguments: Any) -> Any:
    """What the named class or function returns for the arguments and its options. Raises UserError, naming `field`."""
    options = dict(code.options)
    factory = load(code.path, field, len(arguments), options)
    try:
        return factory(*arguments, **options)
    except Exception as error:  # user code may raise anything
        raise UserError(f"{field}: {code.path!r} failed: {told(error)}") from error


def load(path: str, field: str, num_arguments: int, options: Sequence[str] = ()) -> Callable[..., Any]:
    """Imports "package.module:name", which takes so many positional arguments and these keyword arguments.

    Raises UserError, naming the job's `field`, when there is no such thing.
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # user code runs here
        raise UserError(
            f"{field}: {path!r}: importing {module_name} failed: {told(error)}; is its folder in {_FIELD}, or on"
            " PYTHONPATH?"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise UserError(f"{field}: {path!r}: {module_name} has no class or function {name!r}")
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # of some built-in functions nothing is known
        return found
    try:
        signature.bind(*[None] * num_arguments, **dict.fromkeys(options))
    except TypeError as error:
        given = [f"{num_arguments} argument{'s' * (num_arguments != 1)}", *options]
        raise UserError(
            f"{field}: {path!r} is called with {', '.join(given)}, and takes {signature}: {error}"
        ) from error
    return found


def told(error: BaseException) -> str:
    """An exception of user code in one line: where it was raised, its type and its first line."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}: " if place is not None else ""
    lines = str(error).strip().splitlines()
    return f"{where}{type(error).__name__}" + (f": {lines[0]}" if lines else "")


def _digest(paths: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for number, path in enumerate(paths):
        for file in _files(Path(path)):
            digest.update(f"{number}/{file.relative_to(path).as_posix()}".encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """All files but hidden ones and what Python makes of them, in a fixed order."""
    if not folder.is_dir():
        raise UserError(f"{_FIELD}: {folder} is not a folder")
    size = 0
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if not file.is_file() or any(part.startswith(".") or part == "__pycache__" for part in parts):
            continue
        size += file.stat().st_size
        if size > _LARGEST_BYTES:
            raise UserError(
                f"{_FIELD}: {folder} holds more than {_LARGEST_BYTES >> 20} MiB; name a folder of code alone"
            )
        yield file
