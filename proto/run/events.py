"""A stage's event log: JSON lines of JobEvent, written by the stage and followed by whoever shows progress."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from google.protobuf import json_format

from finecut.proto import service_pb2


class EventLog:
    """Appends events. Each is one line and one write, so that a reader never sees half of an earlier one.

    Sequence numbers continue where an earlier process stopped; a line torn by a crash is closed first.
    """

    def __init__(self, path: Path, stage: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stage = stage
        content = path.read_bytes() if path.exists() else b""
        self._sequence = content.count(b"\n")
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if content and not content.endswith(b"\n"):
            os.write(self._file, b"\n")
            self._sequence += 1

    def state(self, state: "service_pb2.JobState") -> None:
        self._append(service_pb2.JobEvent(state=state))

    def message(self, text: str) -> None:
        """A line for people."""
        self._append(service_pb2.JobEvent(message=text))

    def step(self, step: int, total_steps: int, values: dict[str, float]) -> None:
        """Numbers of one step; `step` counts from 1."""
        self._append(
            service_pb2.JobEvent(step=service_pb2.StepMetrics(step=step, total_steps=total_steps, values=values))
        )

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Numbers on the held-out split after `step` steps; 0: before the first."""
        self._append(service_pb2.JobEvent(evaluation=service_pb2.StepMetrics(step=step, values=values)))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _append(self, event: service_pb2.JobEvent) -> None:
        self._sequence += 1
        event.sequence = self._sequence
        event.stage = self._stage
        event.at.GetCurrentTime()
        line = json_format.MessageToJson(event, preserving_proto_field_name=True, indent=None)
        os.write(self._file, line.encode() + b"\n")


def follow(path: Path, position: int = 0) -> tuple[list[service_pb2.JobEvent], int]:
    """Events written since `position` (a byte offset that an earlier call returned; 0 is the start).

    An unfinished last line waits for the next call; a line torn by a crash is passed over.
    """
    try:
        with path.open("rb") as file:
            file.seek(position)
            content = file.read()
    except FileNotFoundError:
        return [], position
    end = content.rfind(b"\n") + 1
    return list(parse(content[:end].splitlines())), position + end


def parse(lines: Iterable[bytes]) -> Iterator[service_pb2.JobEvent]:
    """The events of whole lines; torn ones are passed over."""
    for line in lines:
        try:
            yield json_format.Parse(line, service_pb2.JobEvent())
        except (json_format.ParseError, UnicodeDecodeError):
            continue
