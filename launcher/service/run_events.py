"""A run's logs, read on from where the last reader of this job stopped: what becomes events of the job."""

import json

from finecut.launcher import journal, runs
from finecut.launcher.service.accounts import Accounts
from finecut.launcher.store.records import JobRecord, Progress
from finecut.proto import job_pb2, service_pb2
from finecut.proto.config import waves
from finecut.proto.run import RunFolder, events


class RunEvents:
    """Reads the journal and the stages' logs of one job's run.

    Positions are kept with the events that were made of them, so that none is lost or told twice over a crash.
    """

    def __init__(self, record: JobRecord, config: job_pb2.JobConfig) -> None:
        self._config = config
        self._folder = RunFolder.of(config)
        self._journal = journal.path(self._folder)
        self._logs = {"": self._journal} | {
            stage: self._folder.events(stage) for wave in waves(config) for stage in wave
        }
        self._stages = service_pb2.Job.FromString(record.stages)
        self._reasons: dict[str, str] = {}
        # A run that an earlier job has begun: its events are not ours.
        kept = json.loads(record.positions) if record.positions else {"read": {n: self._size(n) for n in self._logs}}
        self._positions: dict[str, int] = kept["read"]
        self._furthest: dict[str, int] = kept.get("steps", {})
        self._accounts = Accounts(config)

    def note(self, event: service_pb2.JobEvent) -> Progress:
        """An event of the service's own, and how far the logs were read: from here on they are this job's."""
        return Progress((event,), self.stages(), self._kept(), has_advanced=False)

    def read(self) -> Progress | None:
        """What is new; None where nothing is. Of a stage's steps only the newest is passed on."""
        found: list[service_pb2.JobEvent] = []
        before = dict(self._positions)
        for name, path in self._logs.items():
            new, self._positions[name] = events.follow(path, self._positions.get(name, 0))
            steps = [event for event in new if event.HasField("step")]
            found += [event for event in new if not event.HasField("step") or event is steps[-1]]
        if not self._accounts.refresh(self._stages) and self._positions == before:
            return None
        found.sort(key=lambda event: event.at.ToNanoseconds())
        for event in found:
            self._note(event)
        advanced = [self._advances(event) for event in found]
        return Progress(tuple(found), self.stages(), self._kept(), any(advanced))

    def stages(self) -> bytes:
        """Where the stages stand, as a record keeps it."""
        return self._stages.SerializeToString()

    def last(self) -> bytes:
        """The stages of a job that has ended, with what it has cost in the end."""
        self._accounts.refresh(self._stages, at_once=True)
        return self.stages()

    def all_done(self) -> bytes:
        """The same of a job that has succeeded; stages that an earlier job of the run had finished are done too."""
        for stage in self._stages.stages:
            if runs.finished_artifact(self._config, stage.name):
                stage.state = service_pb2.SUCCEEDED
                stage.artifact = str(self._folder.artifact(stage.name))
        return self.last()

    def _kept(self) -> str:
        return json.dumps({"read": self._positions, "steps": self._furthest})

    def _advances(self, event: service_pb2.JobEvent) -> bool:
        """Whether work was done that had not been done before: the same steps again and again are none."""
        if event.HasField("step") and event.step.step > self._furthest.get(event.stage, 0):
            self._furthest[event.stage] = event.step.step
            return True
        return event.WhichOneof("event") == "state" and event.state == service_pb2.SUCCEEDED

    def _note(self, event: service_pb2.JobEvent) -> None:
        stage = next((stage for stage in self._stages.stages if stage.name == event.stage), None)
        if stage is None:
            return
        if event.HasField("message"):
            self._reasons[event.stage] = event.message  # the journal tells the reason before the state
            return
        if event.HasField("step"):
            stage.step, stage.total_steps = event.step.step, event.step.total_steps
        if event.WhichOneof("event") != "state":
            return
        stage.state = event.state
        stage.error = ""
        if event.state == service_pb2.RUNNING:
            stage.started_at.CopyFrom(event.at)
            stage.ClearField("ended_at")
            return
        stage.ended_at.CopyFrom(event.at)
        if event.state == service_pb2.FAILED:
            stage.error = self._reasons.pop(event.stage, "")
        else:
            stage.artifact = str(self._folder.artifact(event.stage))

    def _size(self, name: str) -> int:
        path = self._logs[name]
        return path.stat().st_size if path.exists() else 0
