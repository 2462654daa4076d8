"""A run as people look at it: its state, its history, where its ranks are. Read from its folder, again and again."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from finecut.launcher import journal, planner, report, runs
from finecut.launcher.views import holdings
from finecut.launcher.views.history import StageHistory
from finecut.launcher.views.holdings import Holdings
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import UserError, load_resolved
from finecut.proto.run import RunFolder, events
from finecut.trainer.liveness import reports


@dataclass(frozen=True)
class StageView:
    """One stage: what it is, where it stands, what happened, and its artifact once it is finished."""

    plan: planner.StagePlan
    report: report.StageReport
    history: StageHistory
    ranks: tuple[reports.Report, ...]
    artifact: artifact_pb2.Artifact | None

    @property
    def name(self) -> str:
        return self.plan.name


@dataclass(frozen=True)
class RunView:
    """A run at one moment; `waves` as in planner.Plan."""

    job: job_pb2.JobConfig
    report: report.RunReport
    waves: tuple[tuple[StageView, ...], ...]
    at: float
    code_version: str
    holdings: Holdings

    @property
    def stages(self) -> list[StageView]:
        """All stages, each after those that it needs."""
        return [stage for wave in self.waves for stage in wave]

    @property
    def started(self) -> float | None:
        """When its first stage started, in seconds since 1970; None: none has."""
        return min((stage.history.tries[0].started for stage in self.stages if stage.history.tries), default=None)

    @property
    def ended(self) -> float:
        """When it was last heard of; now, while it runs."""
        if self.report.state == "running":
            return self.at
        return max((stage.history.last_event for stage in self.stages), default=self.at) or self.at


class RunReader:
    """Reads a run folder; each read takes over only what its logs have gained.

    Lines that are torn are passed over, folders that are missing count as nothing done.

    Raises:
      UserError: The folder holds no run, or its config is torn or of a version that this one cannot read.
    """

    def __init__(self, root: Path) -> None:
        folder = RunFolder(root.absolute())
        if not folder.config.is_file():
            raise UserError(f"{root} holds no run: {folder.config.name} is missing; name a run's folder")
        self._folder = folder
        self._job = load_resolved(folder.config)
        self._job.storage.root, self._job.name = str(folder.root.parent), folder.root.name  # it may have been moved
        if not self._job.stages or not all(stage.WhichOneof("work") for stage in self._job.stages):
            raise UserError(f"{folder.config} is torn, or of another version: it lacks stages, or what they do")
        self._plan = planner.plan(self._job)
        self._histories = {name: StageHistory() for name in self._plan.order}
        self._positions = {journal.path(folder): 0} | {folder.events(name): 0 for name in self._plan.order}

    def read(self) -> RunView:
        """The run as it is now."""
        self._follow()
        found = report.of_run(self._job)
        reported = {stage.name: stage for stage in found.stages}
        for stage in found.stages:
            if stage.state == "interrupted":
                self._histories[stage.name].close(self._histories[stage.name].last_event)
        waves = tuple(tuple(self._stage(plan, reported[plan.name]) for plan in wave) for wave in self._plan.waves)
        code = runs.stored_code(self._folder) or ""
        return RunView(self._job, found, waves, time.time(), code, holdings.of_run(self._folder))

    def _follow(self) -> None:
        found = []
        for path, position in self._positions.items():
            new, self._positions[path] = events.follow(path, position)
            found += new
        for event in sorted(found, key=lambda event: event.at.ToNanoseconds()):
            if event.stage in self._histories:
                self._histories[event.stage].add(event)

    def _stage(self, plan: planner.StagePlan, state: report.StageReport) -> StageView:
        artifact = runs.finished_artifact(self._job, plan.name) if state.state == "succeeded" else None
        ranks = self._ranks(plan.name) if state.state == "running" else ()
        return StageView(plan, state, dataclasses.replace(self._histories[plan.name]), ranks, artifact)

    def _ranks(self, stage: str) -> tuple[reports.Report, ...]:
        folder = self._folder.ranks(stage)
        number = sum(1 for _ in folder.glob("rank-*.json")) if folder.is_dir() else 0
        return tuple(reports.read(folder, number).values())
