"""A launcher that is killed or interrupted in the middle of a stage, and what the next one does."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finecut.launcher import testing

SIDE_BY_SIDE = """
stages {
  name: "prepare"
  data_prep { sources { paths: "FOLDER/chat.jsonl" } tokenization { tokenizer: "FOLDER/model" } }
}
stages { name: "left" sft { model { path: "FOLDER/model" } data: "@prepare" } resources { cpu_count: 2 } }
stages { name: "right" sft { model { path: "FOLDER/model" } data: "@prepare" } resources { cpu_count: 2 } }
stages { name: "export" export { model: "@left" } after: "@right" }
"""


def start(job: Path, misbehaviour: str = "", verb: str = "run") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "finecut.launcher.testing", verb, f"--config={job}", "--format=json"],
        env=testing.environment(FINECUT_TEST_MISBEHAVE=misbehaviour),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_calls(run: Path, count: int) -> None:
    """Returns once fake stages were called `count` times."""
    deadline = time.monotonic() + 800
    while not (run / "calls").exists() or len(testing.calls(run)) < count:
        assert time.monotonic() < deadline, "the stage was not reached"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("prepare", ["prepare", "prepare", "sft", "export"]),
        ("sft", ["prepare", "sft", "sft", "export"]),
        ("export", ["prepare", "sft", "export", "export"]),
    ],
)
@pytest.mark.parametrize("verb", ["run", "resume"])
def test_killed_run_goes_on_where_it_was_and_repeats_nothing(
    tmp_path: Path, stage: str, expected: list[str], verb: str
) -> None:
    job = testing.write_job(tmp_path)
    assert start(job, f"kill:{stage}").wait(800) == -signal.SIGKILL
    again = start(job, verb=verb)
    out, errors = again.communicate(timeout=800)
    assert again.returncode == 0, errors
    assert json.loads(out)["state"] == "succeeded"
    assert testing.calls(tmp_path / "runs" / "tiny") == expected


def test_killed_between_stages_that_run_side_by_side_repeats_only_what_was_at_work(tmp_path: Path) -> None:
    job, run = testing.write_job(tmp_path, stages=SIDE_BY_SIDE), tmp_path / "runs" / "tiny"
    first = start(job, "hang:left")
    deadline = time.monotonic() + 800
    while not (run / "stages/right/artifact/manifest.json").exists() or "left" not in testing.calls(run):
        assert time.monotonic() < deadline, "the stages did not run side by side"
        time.sleep(0.05)
    wait_for_record(run, "right")
    os.kill(first.pid, signal.SIGKILL)
    first.wait(800)
    status = json.loads(start(job, verb="status").communicate(timeout=800)[0])
    states = {stage["name"]: stage["state"] for stage in status["stages"]}
    assert states == {"prepare": "succeeded", "left": "interrupted", "right": "succeeded", "export": "pending"}
    assert start(job, verb="resume").wait(800) == 0
    assert sorted(testing.calls(run)) == ["export", "left", "left", "prepare", "right"]
    assert testing.calls(run)[-2:] == ["left", "export"]


def wait_for_record(run: Path, stage: str) -> None:
    """Returns once the workflow's database says that a stage is done."""
    deadline = time.monotonic() + 800
    query = "SELECT status FROM workflow_status WHERE workflow_uuid LIKE ?"
    while True:
        with contextlib.closing(sqlite3.connect(run / "workflow.sqlite")) as database:
            if database.execute(query, [f"%-{stage}"]).fetchone() == ("SUCCESS",):
                return
        assert time.monotonic() < deadline, f"{stage} was not recorded"
        time.sleep(0.05)


def test_run_may_be_killed_many_times(tmp_path: Path) -> None:
    job = testing.write_job(tmp_path)
    for _ in range(3):
        assert start(job, "kill:sft").wait(800) == -signal.SIGKILL
    assert start(job).wait(800) == 0
    assert testing.calls(tmp_path / "runs" / "tiny") == ["prepare", "sft", "sft", "sft", "sft", "export"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_says_how_to_resume_and_can_be(tmp_path: Path, number: signal.Signals) -> None:
    job, run = testing.write_job(tmp_path), tmp_path / "runs" / "tiny"
    first = start(job, "hang:sft")
    wait_for_calls(run, 2)
    first.send_signal(number)
    out, _ = first.communicate(timeout=800)
    document = json.loads(out)
    assert first.returncode == 1
    assert number.name in document["error"] and f"resume tiny --storage_root={tmp_path}/runs" in document["next"]
    status = start(job, verb="status").communicate(timeout=800)[0]
    assert [stage["state"] for stage in json.loads(status)["stages"]] == ["succeeded", "interrupted", "pending"]
    assert start(job).wait(800) == 0
    assert testing.calls(run) == ["prepare", "sft", "sft", "export"]


def test_second_launcher_on_a_running_run_is_refused(tmp_path: Path) -> None:
    job, run = testing.write_job(tmp_path), tmp_path / "runs" / "tiny"
    first = start(job, "hang:sft")
    try:
        wait_for_calls(run, 2)
        status = json.loads(start(job, verb="status").communicate(timeout=800)[0])
        assert (status["state"], status["launcher_pid"]) == ("running", first.pid)
        second = start(job)
        out, _ = second.communicate(timeout=800)
        assert second.returncode == 2
        assert f"process {first.pid}" in json.loads(out)["problems"][0]["message"]
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait(800)
