"""The terminal's view: what it shows of a run at work, and that it ends with the run."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from finecut.launcher import runs
from finecut.launcher import testing as launcher_testing
from finecut.launcher.journal import Journal
from finecut.launcher.views import terminal, testing
from finecut.launcher.views.run_view import RunReader, RunView
from finecut.proto.run import RunFolder
from finecut.trainer.liveness import reports


def shown(view: RunView, width: int = 160) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(terminal.render(view))
    return out.getvalue()


def at_work(run: RunFolder) -> None:
    Journal(run).started("sft")
    testing.write_steps(run, "sft", range(1, 31))
    run.ranks("sft").mkdir(parents=True)
    reports.write(run.ranks("sft"), reports.Report(0, 1, "host-a", step=30, phase="train"))
    reports.write(run.ranks("sft"), reports.Report(1, 2, "host-b", step=29, phase="train", collective="all_reduce"))


def test_a_run_at_work_shows_step_loss_memory_and_ranks(tmp_path: Path) -> None:
    run, job = testing.open_run(tmp_path)
    with runs.opened(job):
        at_work(run)
        text = shown(RunReader(run.root).read())
    for expected in ("running", "30/60", "1.4463", "930", "1.50 of 2.0 GiB", "host-b", "waits in all_reduce", "█", "▁"):
        assert expected in text, text


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_terminal_is_no_obstacle(tmp_path: Path, width: int) -> None:
    run, job = testing.open_run(tmp_path)
    with runs.opened(job):
        at_work(run)
        text = shown(RunReader(run.root).read(), width)
    assert max(map(len, text.splitlines())) <= width and "host-a" in text
    if width == 80:
        assert all(whole in text for whole in ("prepare", "running", "pending", "30/60", "1.4463", "930"))


def test_a_failure_shows_its_reason(tmp_path: Path) -> None:
    run, job = testing.open_run(tmp_path)
    with runs.opened(job):
        Journal(run).started("prepare")
        Journal(run).failed("prepare", "chat.jsonl:3: not JSON")
    assert "prepare: chat.jsonl:3: not JSON" in shown(RunReader(run.root).read())


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], ""), ([1.0], "▁"), ([0, 1], "▁█"), ([3, 3, 3], "▁▁▁"), ([0, 0, 7, 7, 0, 0], "▁▁██▁▁")],
)
def test_sparklines(values: list[float], expected: str) -> None:
    assert terminal.sparkline(values) == expected


def test_long_curves_fit_the_width() -> None:
    assert len(terminal.sparkline(list(range(10_000)), width=24)) == 24


def test_watching_ends_with_the_run(tmp_path: Path) -> None:
    run, job = testing.open_run(tmp_path)
    seen = threading.Event()
    with runs.opened(job):
        at_work(run)
        reader = RunReader(run.root)

        def read() -> RunView:
            view = reader.read()
            seen.set()
            return view

        console = Console(file=io.StringIO(), force_terminal=True, width=100)
        watcher = threading.Thread(target=terminal.watch, args=[read, console, 0.01])
        watcher.start()
        assert seen.wait(300) and watcher.is_alive()
    watcher.join(300)
    assert not watcher.is_alive()


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["status", "tiny", "--watch"], 0, "tiny: succeeded"),
        (["status", "--watch"], 2, "--watch needs a run"),
        (["status", "tiny", "--watch", "--format=json"], 2, "--watch draws for people"),
        (["status"], 0, "unreadable"),
    ],
)
def test_the_command_line_watches(tmp_path: Path, arguments: list[str], code: int, expected: str) -> None:
    testing.write_run(tmp_path)
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "job.textproto").write_text("name: [")
    command = [sys.executable, "-m", "finecut.launcher.main", *arguments, f"--storage_root={tmp_path}/runs"]
    found = subprocess.run(
        command, env=launcher_testing.environment(), capture_output=True, text=True, cwd=os.fspath(tmp_path)
    )
    assert found.returncode == code, found.stderr
    assert expected in found.stdout + found.stderr
