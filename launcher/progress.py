"""Live progress of a run, read from its event logs: bars on a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from finecut.launcher import journal
from finecut.proto import service_pb2
from finecut.proto.run import RunFolder, events

_POLL_SECONDS = 0.2
_PLAIN_SECONDS = 5.0  # between two lines of one stage
_STATES = {
    service_pb2.RUNNING: "started",
    service_pb2.SUCCEEDED: "done",
    service_pb2.FAILED: "failed",
}


class View(Protocol):
    """What shows events."""

    def event(self, event: service_pb2.JobEvent) -> None: ...

    def close(self) -> None: ...


class Follower:
    """Hands new events of a run to a view. Events of earlier launchers are passed over."""

    def __init__(self, folder: RunFolder, stages: list[str], view: View) -> None:
        self._view = view
        self._journal = journal.path(folder)
        paths = [self._journal, *(folder.events(stage) for stage in stages)]
        self._positions: dict[Path, int] = {path: path.stat().st_size if path.exists() else 0 for path in paths}

    def watch(self, done: threading.Event) -> None:
        """Shows events as they come until `done` is set and everything is shown."""
        try:
            while not done.wait(_POLL_SECONDS):
                self.poll()
            self.poll()
        finally:
            self._view.close()

    def poll(self) -> None:
        """Shows what is new, in the order in which it happened."""
        found: list[service_pb2.JobEvent] = []
        for path, position in self._positions.items():
            new, self._positions[path] = events.follow(path, position)
            # The journal's messages are reasons of failures, which are printed at the end.
            found += [event for event in new if path != self._journal or event.WhichOneof("event") == "state"]
        for event in sorted(found, key=lambda event: event.at.ToNanoseconds()):
            self._view.event(event)


@dataclass
class Pace:
    """Time left, from the steps seen so far."""

    first_step: int
    started: float

    def left(self, metrics: service_pb2.StepMetrics, now: float) -> float | None:
        """Seconds to the last step; None before there are two steps to measure by."""
        steps = metrics.step - self.first_step
        if steps <= 0 or metrics.total_steps <= 0:
            return None
        return (now - self.started) / steps * max(0, metrics.total_steps - metrics.step)


class PlainView:
    """A line for each message and state, and one every few seconds for steps."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._paces: dict[str, Pace] = {}
        self._shown_at: dict[str, float] = {}

    def event(self, event: service_pb2.JobEvent) -> None:
        match event.WhichOneof("event"):
            case "state":
                self._print(event, _STATES.get(event.state, service_pb2.JobState.Name(event.state).lower()))
            case "message":
                self._print(event, event.message)
            case "step":
                self._step(event)

    def close(self) -> None:
        pass

    def _step(self, event: service_pb2.JobEvent) -> None:
        now, metrics = event.at.ToNanoseconds() / 1e9, event.step
        pace = self._paces.setdefault(event.stage, Pace(metrics.step, now))
        last = metrics.step == metrics.total_steps
        if not last and now - self._shown_at.get(event.stage, 0.0) < _PLAIN_SECONDS:
            return
        self._shown_at[event.stage] = now
        left = pace.left(metrics, now)
        parts = [f"step {metrics.step:,}/{metrics.total_steps:,}", *describe(metrics.values)]
        if left is not None and not last:
            parts.append(f"{duration(left)} left")
        self._print(event, "  ".join(parts))

    def _print(self, event: service_pb2.JobEvent, text: str) -> None:
        at = time.strftime("%H:%M:%S", time.localtime(event.at.seconds))
        self._console.print(f"{at}  {event.stage:<12}  {text}", markup=False)


class LiveView:
    """A bar for each stage, with messages above."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._paces: dict[str, Pace] = {}
        self._progress.start()

    def event(self, event: service_pb2.JobEvent) -> None:
        task = self._task(event.stage)
        match event.WhichOneof("event"):
            case "state":
                self._state(event, task)
            case "message":
                self._progress.console.print(f"{event.stage:<12} {event.message}", markup=False)
            case "step":
                now, metrics = event.at.ToNanoseconds() / 1e9, event.step
                left = self._paces.setdefault(event.stage, Pace(metrics.step, now)).left(metrics, now)
                self._progress.update(
                    task,
                    completed=metrics.step,
                    total=metrics.total_steps or None,
                    metrics="  ".join(describe(metrics.values)),
                    left=f"{duration(left)} left" if left else "",
                )

    def close(self) -> None:
        self._progress.stop()

    def _state(self, event: service_pb2.JobEvent, task: TaskID) -> None:
        if event.state == service_pb2.RUNNING:
            self._progress.start_task(task)
            return
        shown = self._progress.tasks[self._progress.task_ids.index(task)]
        if event.state == service_pb2.SUCCEEDED:
            total = shown.total or 1
            self._progress.update(task, completed=total, total=total, left="done")
        else:
            self._progress.update(task, left=_STATES.get(event.state, ""))
        self._progress.stop_task(task)

    def _task(self, stage: str) -> TaskID:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=None, metrics="", left="")
        return self._tasks[stage]


def view(console: Console) -> View:
    """Bars on a terminal, lines elsewhere."""
    return LiveView(console) if console.is_terminal else PlainView(console)


def describe(values: Mapping[str, float]) -> list[str]:
    """The metrics that people watch, in words and in this order, where the stage reports them."""
    shown = []
    if "loss" in values:
        shown.append(f"loss {values['loss']:.4f}")
    if "evaluation_loss" in values:
        shown.append(f"evaluation loss {values['evaluation_loss']:.4f}")
    if "tokens_per_second" in values:
        shown.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    return shown


def duration(seconds: float) -> str:
    """Such as "8 s", "2 min 05 s" or "3 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
