"""The purchase of every example that has an `aws` block is as in the files beside this one, whole."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from google.protobuf import text_format

from finecut.launcher.providers.aws import planning
from finecut.proto import job_pb2
from finecut.proto.config import defaults

EXAMPLES = Path(__file__).parents[2] / "examples"
GOLDEN = Path(__file__).parent / "testdata"


def rented() -> dict[str, job_pb2.JobConfig]:
    """Job files whose nodes are bought, by name."""
    jobs = {path.stem: path.read_text() for path in EXAMPLES.glob("*/*.textproto") if "JobConfig" in path.read_text()}
    parsed = {name: text_format.Parse(text, job_pb2.JobConfig()) for name, text in jobs.items()}
    return {name: job for name, job in parsed.items() if job.cluster.WhichOneof("provider") == "aws"}


JOBS = rented()


def test_there_are_examples_that_rent() -> None:
    assert JOBS


@pytest.mark.parametrize("name", sorted(JOBS))
def test_purchase_is_as_in_the_file(name: str) -> None:
    job = JOBS[name]
    job.storage.root = f"{job.cluster.aws.file_system.folder}/runs"
    defaults.fill(job)
    found = json.dumps(asdict(planning.plan(job)), indent=1, sort_keys=True) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("FINECUT_UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text(), "run this test with FINECUT_UPDATE_GOLDEN=1 if the change is meant"
