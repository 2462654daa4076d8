"""The durable workflow: order, failure, going back, and nothing run twice."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from finecut.launcher import workflow
from finecut.launcher.scheduling import Share, Task
from finecut.launcher.workflow import StageError


class Stages:
    """Stages whose artifacts are files; `tasks` unset: a, b and c, each after the one before."""

    def __init__(self, folder: Path, tasks: Sequence[Task] = ()) -> None:
        self.folder = folder
        self.tasks = tasks or [Task("a"), Task("b", frozenset("a")), Task("c", frozenset("b"))]
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self.before: Callable[[str], object] = lambda stage: None
        self.granted: list[tuple[str, Share | None]] = []

    def execute(self, stage: str, share: Share | None) -> None:
        self.calls.append(stage)
        self.before(stage)
        if stage in self.failing:
            raise StageError(stage, "out of luck", invalid_input=True)
        (self.folder / stage).touch()

    def run(self, watch: Callable[[threading.Event], object] = threading.Event.wait) -> list[str]:
        """Runs the workflow; returns what it executed this time."""
        self.calls = []
        work = workflow.Workflow(
            database=self.folder / "workflow.sqlite",
            run_id="tiny",
            tasks=self.tasks,
            whole=Share(4, 4),
            execute=self.execute,
            is_finished=lambda stage: (self.folder / stage).exists(),
            grant=lambda task: self.granted.append((task.name, task.share)),
        )
        workflow.run(work, lambda done: (watch(done), None)[1])
        return self.calls


HALF = Share(2, 0)
SIDE_BY_SIDE = [Task("a"), Task("b", frozenset("a"), HALF), Task("c", frozenset("a"), HALF), Task("d", frozenset("bc"))]


def test_stages_run_in_order_and_a_finished_workflow_runs_nothing(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    assert stages.run() == ["a", "b", "c"]
    assert stages.run() == []


def test_failure_keeps_its_reason_and_the_next_run_starts_with_the_failed_stage(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    stages.failing = {"b"}
    with pytest.raises(StageError, match="stage 'b' failed: out of luck") as caught:
        stages.run()
    assert caught.value.invalid_input and stages.calls == ["a", "b"]
    stages.failing = set()
    assert stages.run() == ["b", "c"]


def test_lost_artifact_is_made_again(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    stages.run()
    (tmp_path / "b").unlink()
    assert stages.run() == ["b"]


def test_database_without_tables_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "workflow.sqlite").touch()  # killed while it was being created
    assert Stages(tmp_path).run() == ["a", "b", "c"]


def test_watcher_that_breaks_off_leaves_the_run_resumable(tmp_path: Path) -> None:
    stages = Stages(tmp_path)

    def break_off(done: threading.Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.run(break_off)
    stages.run()
    assert all((tmp_path / stage).exists() for stage in "abc")


def test_log_goes_to_a_file_and_not_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Stages(tmp_path).run()
    assert capfd.readouterr() == ("", "")
    assert "DBOS launched" in (tmp_path / "logs" / "workflow.log").read_text()


def test_independent_stages_run_at_the_same_time(tmp_path: Path) -> None:
    stages = Stages(tmp_path, SIDE_BY_SIDE)
    meeting = threading.Barrier(2, timeout=300)  # broken, and the run with it, unless both are at work at once
    stages.before = lambda stage: meeting.wait() if stage in ("b", "c") else None
    calls = stages.run()
    assert (calls[0], sorted(calls[1:3]), calls[3:]) == ("a", ["b", "c"], ["d"])


def test_a_stage_beside_one_that_fails_is_finished_and_not_run_again(tmp_path: Path) -> None:
    stages = Stages(tmp_path, SIDE_BY_SIDE)
    failed = threading.Event()

    def fail_first(stage: str) -> None:
        if stage == "b":
            failed.set()
        elif stage == "c":
            assert failed.wait(300)

    stages.before, stages.failing = fail_first, {"b"}
    with pytest.raises(StageError, match="stage 'b' failed"):
        stages.run()
    assert sorted(stages.calls) == ["a", "b", "c"] and (tmp_path / "c").exists()
    stages.failing = set()
    assert stages.run() == ["b", "d"]


def test_a_stage_is_told_its_share_and_that_it_is_given_more(tmp_path: Path) -> None:
    grows = Task("b", share=Share(2, 2), more_gpus=(4, 3), grows=True)
    stages = Stages(tmp_path, [Task("a", share=Share(2, 1)), grows])
    more = ("b", Share(2, 4))

    def wait_for_more(stage: str) -> None:
        deadline = time.monotonic() + 300
        while stage == "b" and more not in stages.granted:
            assert time.monotonic() < deadline, stages.granted
            time.sleep(0.05)

    stages.before = wait_for_more
    stages.run()
    assert stages.granted == [("a", Share(2, 1)), ("b", Share(2, 3)), more]
