"""Reports: the state of a run as read from disk."""

from pathlib import Path

from finecut.launcher import report, runs, testing
from finecut.launcher.journal import Journal
from finecut.proto import job_pb2
from finecut.proto.config import load_job


def states(job: job_pb2.JobConfig) -> list[str]:
    """State of the run, then of each stage."""
    found = report.of_run(job)
    return [found.state, *(stage.state for stage in found.stages)]


def test_run_that_never_started_is_pending(tmp_path: Path) -> None:
    assert states(load_job(testing.write_job(tmp_path))) == ["pending"] * 4


def test_stage_of_a_launcher_that_is_gone_is_interrupted(tmp_path: Path) -> None:
    job = load_job(testing.write_job(tmp_path))
    with runs.opened(job) as folder:
        Journal(folder).started("prepare")
        assert states(job) == ["running", "running", "pending", "pending"]
    assert states(job) == ["interrupted", "interrupted", "pending", "pending"]


def test_failure_comes_with_its_reason(tmp_path: Path) -> None:
    job = load_job(testing.write_job(tmp_path))
    with runs.opened(job) as folder:
        Journal(folder).started("prepare")
        Journal(folder).failed("prepare", "chat.jsonl:3: not JSON")
    assert states(job) == ["failed", "failed", "pending", "pending"]
    assert report.of_run(job).stages[0].error == "chat.jsonl:3: not JSON"


def test_artifact_of_another_config_does_not_count(tmp_path: Path) -> None:
    job = load_job(testing.write_job(tmp_path))
    with runs.opened(job) as folder:
        testing.fake_machinery().executors["data_prep"](job, "prepare")
        assert states(job)[1] == "succeeded"
    other = load_job(tmp_path / "job.textproto", overrides=["stages.prepare.data_prep.seed=7"])
    assert states(other)[1] == "pending"
    (folder.artifact("prepare") / "manifest.json").write_text("torn")
    assert states(job)[1] == "pending"


def test_report_of_prepared_data_is_a_place(tmp_path: Path) -> None:
    job = load_job(testing.write_job(tmp_path))
    with runs.opened(job) as folder:
        testing.fake_machinery().executors["data_prep"](job, "prepare")
        assert "report" not in report.of_run(job).stages[0].places
        page = folder.artifact("prepare") / "report.html"
        page.write_text("<!doctype html>")
        assert report.of_run(job).stages[0].places["report"] == str(page)
