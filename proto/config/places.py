"""Places that a job names: made absolute, and checked to be there."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from finecut.proto import data_pb2, job_pb2, rules_pb2
from finecut.proto.config import walk
from finecut.proto.config.errors import Problem
from finecut.proto.config.walk import Visit

_LABEL = re.compile(r"//([\w./+-]*):([\w./+-]+)")
_GLOB = re.compile(r"[*?\[]")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def user_folder() -> Path:
    """Where the user stands: Bazel starts programs elsewhere and says so in BUILD_WORKING_DIRECTORY."""
    return Path(os.environ.get("BUILD_WORKING_DIRECTORY") or os.getcwd())


def make_absolute(job: job_pb2.JobConfig, base: Path) -> list[Problem]:
    """Resolves relative paths against `base` and labels against this program's files."""
    problems = []
    for found in walk.references(job):
        if not found.rule.reference or not isinstance(found.value, str) or found.value.startswith("@"):
            continue
        if is_remote(found.value):
            if found.rule.reference in (rules_pb2.REFERENCE_FILES, rules_pb2.REFERENCE_STORE):
                continue
            problems.append(
                Problem(found.path, f'"{found.value}": remote storage is not in this version; use a local path')
            )
        elif found.value.startswith("//"):
            problems += _resolve_label(found)
        else:
            path = Path(found.value.removeprefix("file://")).expanduser()
            found.replace(os.path.normpath(base / path))
    return problems


def references(job: job_pb2.JobConfig) -> Iterator[Visit]:
    """Every place that is named by a path or a URL, rather than by "@stage" or a label."""
    for found in walk.references(job):
        if found.rule.reference and isinstance(found.value, str) and not found.value.startswith(("@", "//")):
            yield found


def anchor(job: job_pb2.JobConfig, base: Path) -> None:
    """Makes relative paths absolute and leaves labels alone."""
    for found in list(references(job)):
        if not is_remote(found.value):
            found.replace(os.path.normpath(base / Path(found.value.removeprefix("file://")).expanduser()))


def is_remote(place: str) -> bool:
    """Whether it is a URL. Input files and checkpoints may be there; they are looked for when their stage starts."""
    return "://" in place and not place.startswith("file://")


def _resolve_label(found: Visit) -> list[Problem]:
    match = _LABEL.fullmatch(found.value)
    if not match:
        return [Problem(found.path, f'"{found.value}" is not a label; write it like //package:target')]
    package, target = match.groups()
    workspace = os.environ.get("BUILD_WORKSPACE_DIRECTORY")
    candidates = [_program_folder() / package / target]
    if workspace:
        candidates += [Path(workspace) / "bazel-bin" / package / target, Path(workspace) / package / target]
    for candidate in candidates:
        if candidate.exists():
            found.replace(str(candidate.resolve()))
            return []
    return [
        Problem(
            found.path, f"{found.value} is not among this program's files; build it and give the path under bazel-bin"
        )
    ]


def _program_folder() -> Path:
    """The folder `finecut` that holds the first-party packages (Bazel's runfiles or an unpacked bundle)."""
    return Path(__file__).parents[2]


def check(job: job_pb2.JobConfig) -> Iterator[Problem]:
    """Files and models that are not there. Paths are absolute already.

    os.path rather than pathlib asks: to pathlib a path that is too long is an OSError.
    """
    for found in walk.references(job):
        if not isinstance(found.value, str) or found.value.startswith("@") or is_remote(found.value):
            continue
        if found.rule.reference == rules_pb2.REFERENCE_FILES:
            yield from _check_files(found)
        elif found.rule.reference == rules_pb2.REFERENCE_FOLDER and not os.path.isdir(found.value):
            yield Problem(found.path, f'"{found.value}" is not a folder')
        elif found.rule.reference == rules_pb2.REFERENCE_MODEL:
            yield from _check_model(found)
        elif found.rule.reference == rules_pb2.REFERENCE_DATA and not os.path.isfile(
            os.path.join(found.value, "manifest.json")
        ):
            yield Problem(
                found.path, f'"{found.value}" holds no prepared data (manifest.json is missing); write "@stage"'
            )


def _check_files(found: Visit) -> Iterator[Problem]:
    if _GLOB.search(found.value):
        if not glob.glob(found.value, recursive=True):
            yield Problem(found.path, f'no file matches "{found.value}"')
        return
    path = Path(found.value)
    if isinstance(found.parent, data_pb2.DataSource) and found.parent.format == data_pb2.HF_DATASET:
        if not os.path.isdir(path):
            yield Problem(found.path, f'"{found.value}" is not a folder; HF_DATASET is one that save_to_disk wrote')
    elif os.path.isdir(path):
        hint = "; set format to HF_DATASET if datasets.save_to_disk wrote it" if (path / "state.json").exists() else ""
        yield Problem(found.path, f'"{found.value}" is a folder, not a file{hint}')
    elif not os.path.isfile(path):
        yield Problem(found.path, f'"{found.value}" does not exist')


def _check_model(found: Visit) -> Iterator[Problem]:
    folder = Path(found.value)
    if not os.path.isdir(folder):
        hint = "; models are read from local folders in this version, so download it and give its folder"
        relative = os.path.relpath(folder, user_folder())
        is_hub_id = bool(_HUB_ID.fullmatch(relative))
        yield Problem(found.path, f'"{found.value}" does not exist{hint if is_hub_id else ""}')
    elif not any((folder / name).is_file() for name in ("config.json", "adapter_config.json", "manifest.json")):
        yield Problem(found.path, f'"{found.value}" is not a Hugging Face model folder: it has no config.json')
