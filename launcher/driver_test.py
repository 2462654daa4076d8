"""Driving a run with fake stages: what is left at its end, and stages side by side."""

import dataclasses
import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from finecut.launcher import driver, report, testing
from finecut.launcher.providers.provider import Phase
from finecut.launcher.workflow import StageError
from finecut.proto import job_pb2
from finecut.proto.config import load_job
from finecut.proto.run import RunFolder

SIDE_BY_SIDE = """
stages {
  name: "prepare"
  data_prep { sources { paths: "FOLDER/chat.jsonl" } tokenization { tokenizer: "FOLDER/model" } }
}
stages { name: "left" sft { model { path: "FOLDER/model" } data: "@prepare" } resources { cpu_count: 2 } }
stages { name: "right" sft { model { path: "FOLDER/model" } data: "@prepare" } resources { cpu_count: 2 } }
"""


def drive(job: job_pb2.JobConfig, machinery: driver.Machinery) -> str:
    """Drives a job; returns what was printed."""
    out = io.StringIO()
    driver.drive(job, machinery, Console(file=out, width=200))
    return out.getvalue()


def fail(stage: str) -> None:
    if stage == "sft":
        raise RuntimeError("the machine is on fire")


def test_a_run_that_ends_has_a_report_that_says_so(tmp_path: Path) -> None:
    job = load_job(testing.write_job(tmp_path))
    drive(job, testing.fake_machinery())
    page = RunFolder.of(job).page
    assert "<title>tiny: succeeded</title>" in page.read_text()
    assert report.of_run(job).page == str(page)


def test_a_run_that_fails_has_one_too_with_the_reason(tmp_path: Path) -> None:
    job = load_job(testing.write_job(tmp_path))
    with pytest.raises(StageError):
        drive(job, testing.fake_machinery(fail))
    text = RunFolder.of(job).page.read_text()
    assert "<title>tiny: failed</title>" in text and "the machine is on fire" in text
    drive(job, testing.fake_machinery())
    text = RunFolder.of(job).page.read_text()
    assert "<title>tiny: succeeded</title>" in text and "2 tries" in text


def test_a_report_that_is_gone_is_written_again_without_running_anything(tmp_path: Path) -> None:
    job = load_job(testing.write_job(tmp_path))
    drive(job, testing.fake_machinery())
    run = RunFolder.of(job)
    run.page.unlink()
    drive(job, testing.fake_machinery())
    assert run.page.is_file() and testing.calls(run.root) == ["prepare", "sft", "export"]


def test_a_run_that_finished_without_its_launcher_gives_its_machines_back(tmp_path: Path) -> None:
    """As after a launcher that was killed: what it had bought is still there."""
    job, released = load_job(testing.write_job(tmp_path)), []

    class Bought(testing.FakeProvider):
        def release(self) -> None:
            released.append(self.phase)

    machinery = testing.fake_machinery()
    drive(job, machinery)
    drive(job, dataclasses.replace(machinery, provider=Bought))
    assert released == [Phase.ABSENT]


def test_a_report_that_cannot_be_written_does_not_fail_the_run(tmp_path: Path) -> None:
    job = load_job(testing.write_job(tmp_path))
    RunFolder.of(job).page.mkdir(parents=True)
    assert "the report could not be written" in drive(job, testing.fake_machinery())
    assert report.of_run(job).state == "succeeded"


def test_stages_that_declare_what_they_take_run_at_the_same_time(tmp_path: Path) -> None:
    meeting = threading.Barrier(2, timeout=300)
    job = load_job(testing.write_job(tmp_path, stages=SIDE_BY_SIDE))
    drive(job, testing.fake_machinery(lambda stage: (meeting.wait(), None)[1] if stage != "prepare" else None))
    assert report.of_run(job).state == "succeeded"
