"""Records a run: TensorBoard curves and the event log that progress displays follow. Rank 0 writes."""

from __future__ import annotations

from types import TracebackType

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from finecut.proto.run.events import EventLog
from finecut.trainer.config import StagePlace
from finecut.trainer.parallel.process_group import Devices


class Recorder:
    """Writes what a run measures; does nothing on ranks other than 0.

    `resumed_step` is the step that a resumed run continues after (0: from the start). TensorBoard drops what an
    interrupted try recorded beyond it, so that no curve doubles.
    """

    def __init__(self, place: StagePlace, total_steps: int, resumed_step: int, devices: Devices) -> None:
        self._total_steps = total_steps
        self._writer: SummaryWriter | None = None
        self._events: EventLog | None = None
        if devices.is_main:
            # The evaluation before step 1 is recorded at step 0, so a run from the start drops everything.
            purge_step = resumed_step + 1 if resumed_step else 0
            self._writer = SummaryWriter(str(place.tensorboard), purge_step=purge_step)
            self._events = EventLog(place.events, place.stage)

    def message(self, text: str) -> None:
        """A line for people."""
        if self._events:
            self._events.message(text)

    def step(self, step: int, values: dict[str, float]) -> None:
        """Numbers of one training step (from 1)."""
        if self._events:
            self._events.step(step, self._total_steps, values)
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
        self._scalars("evaluation", step, {"loss": loss} | of_sources | metrics)

    def histogram(self, name: str, step: int, values: Tensor) -> None:
        """How values of one step are spread, such as the advantages of its tokens."""
        if self._writer and values.numel():
            self._writer.add_histogram(name, values.float().cpu(), step)

    def text(self, name: str, step: int, markdown: str) -> None:
        """Text of one step, such as a table of samples."""
        if self._writer:
            self._writer.add_text(name, markdown, step)

    def _scalars(self, group: str, step: int, values: dict[str, float]) -> None:
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._writer:
            self._writer.close()
        if self._events:
            self._events.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
