"""Records a run: TensorBoard curves and the event log that progress displays follow. Rank 0 writes.

What cannot be written (a full disk, a folder that is gone) never stops training: it is said once, and tried again.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from finecut.proto.run.events import EventLog
from finecut.trainer.config import StagePlace
from finecut.trainer.metrics.clock import Clock
from finecut.trainer.parallel.process_group import Devices


class _Closing(Protocol):
    def close(self) -> None: ...


Writer = TypeVar("Writer", bound=_Closing)

_RETRY_S = 60.0
# What a writer raises that cannot write: the system's errors, and those of a queue or file that is closed.
_FAILURES = (OSError, ValueError, RuntimeError)


class Recorder:
    """Writes what a run measures; does nothing on ranks other than 0.

    `resumed_step` is the step that a resumed run continues after (0: from the start). TensorBoard drops what an
    interrupted try recorded beyond it, so that no curve doubles.
    """

    def __init__(self, place: StagePlace, total_steps: int, resumed_step: int, devices: Devices) -> None:
        self._total_steps = total_steps
        self._clock = Clock()
        self._writer: _Sink[SummaryWriter] | None = None
        self._events: _Sink[EventLog] | None = None
        if devices.is_main:
            # The evaluation before step 1 is recorded at step 0, so a run from the start drops everything.
            purge_step = resumed_step + 1 if resumed_step else 0
            folder = str(place.tensorboard)
            self._events = _Sink("the event log", lambda: EventLog(place.events, place.stage), self._warn)
            self._writer = _Sink(
                "TensorBoard's files", lambda: SummaryWriter(folder, purge_step=purge_step), self._warn
            )

    def message(self, text: str) -> None:
        """A line for people."""
        if self._events:
            self._events.write(lambda log: log.message(text))

    def step(self, step: int, values: dict[str, float]) -> None:
        """Numbers of one training step (from 1)."""
        if self._events:
            self._events.write(lambda log: log.step(step, self._total_steps, values))
            if jump := self._clock.jump():
                self.message(
                    f"the clock of rank 0's host jumped by {jump:+,.0f} s; durations go by another clock, times of day"
                    " in logs and TensorBoard before and after it do not fit together"
                )
        self._scalars("train", step, values)

    def evaluation(
        self, step: int, loss: float, loss_by_source: dict[str, float], metrics: dict[str, float] | None = None
    ) -> None:
        """Held-out loss after `step` steps, of all and, where there are several, of each source; and other metrics."""
        metrics = metrics or {}
        when = f"after step {step}" if step else "before training"
        parts = ", ".join(f"{source} {value:.4f}" for source, value in loss_by_source.items())
        others = "".join(f", {name} {value:.4f}" for name, value in metrics.items())
        self.message(f"evaluation loss {loss:.4f}{others} {when}{f' ({parts})' if parts else ''}")
        of_sources = {f"loss/{source}": value for source, value in loss_by_source.items()}
        self._held_out("evaluation", step, {"loss": loss} | of_sources | metrics)

    def answers(self, step: int, values: dict[str, float]) -> None:
        """What answers to held-out prompts are worth after `step` steps; 0: before the first."""
        when = f"after step {step}" if step else "before training"
        parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.message(f"held-out answers {when}: {parts}")
        self._held_out("eval", step, values)

    def _held_out(self, group: str, step: int, values: dict[str, float]) -> None:
        self._scalars(group, step, values)
        if self._events:
            self._events.write(lambda log: log.evaluation(step, values))

    def histogram(self, name: str, step: int, values: Tensor) -> None:
        """How values of one step are spread, such as the losses of its tokens."""
        if self._writer and values.numel():
            self._writer.write(lambda writer: writer.add_histogram(name, values.float().cpu(), step))

    def text(self, name: str, step: int, markdown: str) -> None:
        """Text of one step, such as a table of samples."""
        if self._writer:
            self._writer.write(lambda writer: writer.add_text(name, markdown, step))

    def _scalars(self, group: str, step: int, values: dict[str, float]) -> None:
        """As one event: the writer's queue holds ten, and training would wait for it to empty."""
        if self._writer:
            found = [Summary.Value(tag=f"{group}/{name}", simple_value=value) for name, value in values.items()]
            self._writer.write(lambda writer: writer.file_writer.add_summary(Summary(value=found), step))

    def _warn(self, text: str) -> None:
        """To standard error, which is in the worker's log, and to whichever of the two still works."""
        print(f"warning: {text}", file=sys.stderr, flush=True)
        if self._events and not self._events.is_broken:
            self.message(text)

    def close(self) -> None:
        """Flushes and closes the files."""
        for sink in (self._writer, self._events):
            if sink:
                sink.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Sink(Generic[Writer]):
    """One writer, opened again a minute after it failed; what comes meanwhile is lost."""

    def __init__(self, name: str, make: Callable[[], Writer], warn: Callable[[str], None]) -> None:
        self._name, self._make, self._warn = name, make, warn
        self._writer: Writer | None = None
        self._retry_at = 0.0
        self._has_warned = False
        self.is_broken = False
        with self._failing():
            self._writer = make()

    def write(self, call: Callable[[Writer], object]) -> None:
        """Calls with the writer, where there is one that works."""
        if self.is_broken:
            if time.monotonic() < self._retry_at:
                return
            self._drop()
        with self._failing():
            if self._writer is None:
                self._writer = self._make()
            call(self._writer)
            self.is_broken = False

    def close(self) -> None:
        """Closes the writer; what it still held back may be lost with a full disk."""
        with self._failing():
            if self._writer is not None:
                self._writer.close()

    def _drop(self) -> None:
        """Lets go of a writer that failed."""
        writer, self._writer = self._writer, None
        with contextlib.suppress(*_FAILURES):
            if writer is not None:
                writer.close()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except _FAILURES as error:
            self.is_broken, self._retry_at = True, time.monotonic() + _RETRY_S
            if not self._has_warned:
                self._has_warned = True
                self._warn(
                    f"{self._name} cannot be written ({error}); training goes on without them, and tries again every"
                    " minute"
                )
