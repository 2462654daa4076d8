"""What must be equal for work to be equal."""

import functools
import hashlib
from pathlib import Path

from finecut.proto import job_pb2
from finecut.proto.config.compare import flatten
from finecut.proto.config.graph import upstream

VERSION = "0.1.0"
_PACKAGES = ("proto", "dataprep", "trainer")


def of_stage(job: job_pb2.JobConfig, name: str) -> str:
    """SHA-256 of a stage's resolved config and of everything upstream, without fields that are safe to change.

    Equal fingerprints mean that the stage would do the same work; `job` must be resolved.
    """
    stage = next(stage for stage in job.stages if stage.name == name)
    digest = hashlib.sha256()
    for path, value in sorted(flatten(stage).items()):
        digest.update(f"{path}={value}\n".encode())
    for needed in upstream(job, name):
        digest.update(of_stage(job, needed).encode())
    return digest.hexdigest()


@functools.cache
def code_version() -> str:
    """Release and a short hash of the sources that this program runs from, such as "0.1.0+3f2a9c81d0e4"."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return f"{VERSION}+{digest.hexdigest()[:12]}"
