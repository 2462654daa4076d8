"""SIGTERM with several stages at work: which are asked for a checkpoint, and when the run counts as saved."""

import io
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from finecut.launcher import preemption, testing
from finecut.launcher.stages import Stopping
from finecut.proto import job_pb2
from finecut.proto.config import load_job
from finecut.proto.run import RunFolder
from finecut.trainer.liveness import notice

STAGES = """
stages {
  name: "prepare"
  data_prep { sources { paths: "FOLDER/chat.jsonl" } tokenization { tokenizer: "FOLDER/model" } }
}
stages { name: "left" sft { model { path: "FOLDER/model" } data: "@prepare" } }
stages { name: "right" sft { model { path: "FOLDER/model" } data: "@prepare" } }
"""


@pytest.fixture
def job(tmp_path: Path) -> job_pb2.JobConfig:
    return load_job(testing.write_job(tmp_path, stages=STAGES))


def working(*stages: str) -> Stopping:
    stopping = Stopping()
    for stage in stages:
        stopping.started(stage)
    return stopping


def stop(job: job_pb2.JobConfig, stopping: Stopping) -> bool:
    return preemption.stop(job, stopping, Console(file=io.StringIO()))


def end_on_notice(job: job_pb2.JobConfig, stopping: Stopping, *stages: str) -> threading.Thread:
    """Threads of stages that stop once they are asked to."""

    def work() -> None:
        deadline = time.monotonic() + 300
        for stage in stages:
            while notice.read(RunFolder.of(job).ranks(stage)) is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            stopping.ended(stage)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_all_training_stages_at_work_are_asked_and_awaited(job: job_pb2.JobConfig) -> None:
    for stage in ("left", "right"):
        RunFolder.of(job).ranks(stage).mkdir(parents=True)
    stopping = working("left", "right")
    thread = end_on_notice(job, stopping, "left", "right")
    assert stop(job, stopping) and not stopping.running
    thread.join()


def test_one_that_does_not_stop_in_time_is_not_saved(job: job_pb2.JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_DEADLINE_S", 0.2)
    for stage in ("left", "right"):
        RunFolder.of(job).ranks(stage).mkdir(parents=True)
    stopping = working("left", "right")
    thread = end_on_notice(job, stopping, "left")
    assert not stop(job, stopping)
    thread.join()


def test_where_nothing_trains_there_is_nothing_to_save(job: job_pb2.JobConfig) -> None:
    assert not stop(job, working("prepare"))
    assert not stop(job, working("left")), "its ranks have not started"


def test_no_stage_starts_once_all_are_asked_to_stop() -> None:
    stopping = Stopping()
    stopping.asked.set()
    thread = threading.Thread(target=stopping.started, args=["left"], daemon=True)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive() and not stopping.running
