"""The run's own event log: when each stage started and how it ended. Stages keep logs of their own for their steps."""

from pathlib import Path

from finecut.proto import service_pb2
from finecut.proto.run import RunFolder, events
from finecut.proto.run.events import EventLog


def path(folder: RunFolder) -> Path:
    """The journal of a run."""
    return folder.root / "events.jsonl"


class Journal:
    """Written by the launcher that holds the run's lock."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = path(folder)

    def started(self, stage: str) -> None:
        with EventLog(self._path, stage) as log:
            log.state(service_pb2.RUNNING)

    def succeeded(self, stage: str) -> None:
        with EventLog(self._path, stage) as log:
            log.state(service_pb2.SUCCEEDED)

    def failed(self, stage: str, reason: str) -> None:
        with EventLog(self._path, stage) as log:
            log.message(reason)
            log.state(service_pb2.FAILED)


def last_states(folder: RunFolder) -> dict[str, tuple["service_pb2.JobState", str]]:
    """The newest state of each stage that ever started, with the reason of a failure."""
    states: dict[str, tuple[service_pb2.JobState, str]] = {}
    reasons: dict[str, str] = {}
    for event in events.follow(path(folder))[0]:
        if event.WhichOneof("event") == "message":
            reasons[event.stage] = event.message
        else:
            states[event.stage] = (event.state, reasons.pop(event.stage, ""))
    return states
