"""Progress: what is shown, how often, and time left."""

import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from finecut.launcher import progress
from finecut.launcher.journal import Journal
from finecut.proto import service_pb2
from finecut.proto.run import RunFolder
from finecut.proto.run.events import EventLog


def step(number: int, total: int, second: int, loss: float = 2.0) -> service_pb2.JobEvent:
    event = service_pb2.JobEvent(stage="sft")
    event.at.FromSeconds(1_700_000_000 + second)
    event.step.step, event.step.total_steps = number, total
    event.step.values.update(loss=loss, tokens_per_second=1234.4)
    return event


def plain_lines(*shown: service_pb2.JobEvent) -> list[str]:
    out = io.StringIO()
    view = progress.PlainView(Console(file=out, width=200))
    for event in shown:
        view.event(event)
    return [line.split("  ", 1)[1].strip() for line in out.getvalue().splitlines()]


def test_plain_lines_are_rate_limited_and_the_last_step_is_always_shown() -> None:
    lines = plain_lines(*(step(number, 20, second=number) for number in range(1, 21)))
    assert [line.split("step ")[1].split("/")[0] for line in lines] == ["1", "6", "11", "16", "20"]


def test_plain_line_has_loss_speed_and_time_left() -> None:
    lines = plain_lines(step(1, 11, second=0), step(6, 11, second=50, loss=1.25))
    assert [part.strip() for part in lines[1].split("  ")][-4:] == [
        "step 6/11",
        "loss 1.2500",
        "1,234 tokens/s",
        "50 s left",
    ]


def test_follower_shows_new_events_of_all_logs_and_passes_over_old_ones(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    journal = Journal(folder)
    journal.started("old")
    out = io.StringIO()
    follower = progress.Follower(folder, ["sft"], progress.PlainView(Console(file=out, width=200)))
    journal.started("sft")
    with EventLog(folder.events("sft"), "sft") as log:
        log.message("restored step [3]")
        log.step(4, 4, {"evaluation_loss": 1.5})
    journal.failed("sft", "a reason that is printed at the end")
    done = threading.Event()
    done.set()
    follower.watch(done)
    shown = out.getvalue()
    assert "old" not in shown and "a reason" not in shown
    positions = [shown.index(text) for text in ("started", "restored step [3]", "evaluation loss 1.5000", "failed")]
    assert positions == sorted(positions)


def test_live_view_draws_a_bar_with_metrics() -> None:
    out = io.StringIO()
    view = progress.view(Console(file=out, force_terminal=True, width=120))
    assert isinstance(view, progress.LiveView)
    started = service_pb2.JobEvent(stage="sft", state=service_pb2.RUNNING)
    ended = service_pb2.JobEvent(stage="sft", state=service_pb2.SUCCEEDED)
    for event in (started, step(1, 4, 0), step(2, 4, 10), ended):
        view.event(event)
    view.close()
    assert "loss 2.0000" in out.getvalue() and "4/4" in out.getvalue() and "done" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (65, "1 min 05 s"), (3600, "1 h 00 min"), (11520, "3 h 12 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
