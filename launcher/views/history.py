"""What happened in a run, folded from its events: the tries of each stage, its steps, curves and messages.

Events may come from the logs of a run folder or from the service's stream; a history does not know which.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

from finecut.proto import service_pb2

_ENDED = (service_pb2.SUCCEEDED, service_pb2.FAILED, service_pb2.CANCELLED)
_LARGEST = 1e300
MAX_MESSAGES = 2000  # of one stage; older ones stay in its log


@dataclass
class Curve:
    """Values of one metric by step; steps ascend."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, value: float) -> None:
        """Adds a value. A resumed stage repeats steps: what an earlier try recorded from there on is dropped."""
        keep = bisect.bisect_left(self.steps, step)
        del self.steps[keep:], self.values[keep:]
        self.steps.append(step)
        self.values.append(value)

    def finite(self) -> Iterator[tuple[int, float]]:
        """Points that can be drawn: not NaN, nor so large that differences overflow."""
        pairs = zip(self.steps, self.values, strict=True)
        return ((step, value) for step, value in pairs if abs(value) < _LARGEST)  # false for NaN


@dataclass
class Try:
    """One start of a stage, in seconds since 1970. `ended` None: it is at work, or its launcher was killed."""

    started: float
    ended: float | None = None
    state: "service_pb2.JobState" = service_pb2.RUNNING


@dataclass
class StageHistory:
    """What happened to one stage.

    Attributes:
      paced_from: Time and step from which the newest try's pace is measured; None before its first step.
    """

    tries: list[Try] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)
    messages: list[tuple[float, str]] = field(default_factory=list)
    step: int = 0
    total_steps: int = 0
    last_event: float = 0.0
    paced_from: tuple[float, int] | None = None

    @property
    def latest(self) -> dict[str, float]:
        """The newest value of each metric."""
        return {name: curve.values[-1] for name, curve in self.curves.items() if curve.values}

    def seconds(self, now: float) -> float:
        """Time at work, over all tries."""
        return sum(max(0.0, (now if each.ended is None else each.ended) - each.started) for each in self.tries)

    def seconds_left(self) -> float | None:
        """Time to the last step at the newest try's pace; None before there are two steps to measure by."""
        if self.paced_from is None or not self.total_steps:
            return None
        started, first = self.paced_from
        if self.step <= first:
            return None
        return (self.last_event - started) / (self.step - first) * max(0, self.total_steps - self.step)

    def add(self, event: service_pb2.JobEvent) -> None:
        """Takes one event over. Events of one log must come in order."""
        at = event.at.ToNanoseconds() / 1e9
        match event.WhichOneof("event"):
            case "state":
                self._state(at, event.state)
            case "message":
                self.messages.append((at, event.message))
                del self.messages[:-MAX_MESSAGES]
            case "step":
                self._step(at, event.step)
            case "evaluation":
                self._add_values("evaluation_", event.evaluation)
        self.last_event = max(self.last_event, at)

    def _state(self, at: float, state: "service_pb2.JobState") -> None:
        if state == service_pb2.RUNNING:
            self.close(self.last_event)
            self.tries.append(Try(at))
            self.paced_from = None
        elif state in _ENDED and self.tries:
            self.tries[-1].ended, self.tries[-1].state = at, state

    def _step(self, at: float, numbers: service_pb2.StepMetrics) -> None:
        if self.paced_from is None or numbers.step < self.step:
            self.paced_from = (at, numbers.step)
        self.step, self.total_steps = numbers.step, numbers.total_steps
        self._add_values("", numbers)

    def _add_values(self, prefix: str, numbers: service_pb2.StepMetrics) -> None:
        for name, value in numbers.values.items():
            self.curves.setdefault(prefix + name, Curve()).add(numbers.step, value)

    def close(self, at: float) -> None:
        """Ends a try whose launcher is gone at the last that was heard of it."""
        if self.tries and self.tries[-1].ended is None:
            self.tries[-1].ended = max(at, self.tries[-1].started)
