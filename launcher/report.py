"""A run from the outside: the state of its stages and where everything is. Reads files, imports little."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from finecut.launcher import journal, planner, runs
from finecut.proto import artifact_pb2, job_pb2, service_pb2
from finecut.proto.config import UserError, load_resolved
from finecut.proto.run import RunFolder


@dataclass(frozen=True)
class StageReport:
    """One stage.

    Attributes:
      state: "pending", "running", "interrupted", "failed" or "succeeded".
      error: Why it failed.
      places: What is where, such as {"artifact": ..., "checkpoints": ..., "tensorboard": ...}; only what is there.
      metrics: Final numbers of a model.
      samples: Prompts and the exported model's answers.
    """

    name: str
    kind: str
    state: str
    error: str = ""
    places: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    samples: tuple[dict[str, str], ...] = ()

    @property
    def result(self) -> str:
        """Why it failed, or its final numbers."""
        return self.error or _outcome(self.metrics)


@dataclass(frozen=True)
class RunReport:
    """A run: the state of the whole, its folder, its stages in the order they run, its report where it is written."""

    name: str
    state: str
    folder: str
    launcher_pid: int | None
    stages: tuple[StageReport, ...]
    page: str | None = None

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def show(self, console: Console) -> None:
        """For people."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("stage", "kind", "state", "result"):
            table.add_column(heading, overflow="fold")
        for stage in self.stages:
            table.add_row(stage.name, stage.kind, stage.state, stage.result)
        console.print(f"{self.name}: {self.state}", style="bold")
        console.print(table)
        self.show_places(console)

    def show_places(self, console: Console) -> None:
        """Where everything is, and what the exported model answers."""
        console.print(f"\n{'run folder':<28}{self.folder}", markup=False)
        if self.page:
            console.print(f"{'report':<28}{self.page}", markup=False)
        for stage in self.stages:
            for what, path in stage.places.items():
                console.print(f"{f'{stage.name}: {what}':<28}{path}", markup=False)
        for stage in self.stages:
            for sample in stage.samples:
                console.print(f"\n> {sample['prompt']}\n{sample['answer']}", markup=False)


def of_run(job: job_pb2.JobConfig) -> RunReport:
    """The report of a resolved job's run, which may not have started."""
    folder = RunFolder.of(job)
    pid = runs.launcher_pid(folder)
    states = journal.last_states(folder)
    kinds = {stage.name: planner.stage_kind(stage) for stage in job.stages}
    stages = tuple(
        _stage(job, folder, name, kinds[name], states.get(name), pid is not None) for name in planner.plan(job).order
    )
    page = str(folder.page) if folder.page.is_file() else None
    return RunReport(job.name, _overall([stage.state for stage in stages], pid), str(folder.root), pid, stages, page)


def state_of(folder: RunFolder) -> str:
    """State of a run among others; "unreadable" where its config is torn or of another version."""
    try:
        job = load_resolved(folder.config)
        job.storage.root, job.name = str(folder.root.parent), folder.root.name
        return of_run(job).state if job.stages else "unreadable"
    except (UserError, AssertionError):
        return "unreadable"


def _outcome(metrics: dict[str, float]) -> str:
    """Final numbers; the evaluation loss with what it was before training."""
    shown = [f"loss {metrics['loss']:.4f}"] if "loss" in metrics else []
    if "evaluation_loss" in metrics:
        after = metrics["evaluation_loss"]
        before = metrics.get("first_evaluation_loss", after)
        change = f"{before:.4f} -> {after:.4f} ({after / before - 1:+.1%})" if before else f"{after:.4f}"
        shown.append(f"evaluation loss {change}")
    return ", ".join(shown)


def _overall(states: list[str], pid: int | None) -> str:
    if all(state == "succeeded" for state in states):
        return "succeeded"
    if pid is not None:
        return "running"
    if "failed" in states:
        return "failed"
    return "pending" if all(state == "pending" for state in states) else "interrupted"


def _stage(
    job: job_pb2.JobConfig,
    folder: RunFolder,
    name: str,
    kind: str,
    last: tuple["service_pb2.JobState", str] | None,
    launcher_works: bool,
) -> StageReport:
    artifact = runs.finished_artifact(job, name)
    state, error = "pending", ""
    if artifact:
        state = "succeeded"
    elif last and last[0] == service_pb2.FAILED:
        state, error = "failed", last[1]
    elif last and last[0] == service_pb2.RUNNING:
        state = "running" if launcher_works else "interrupted"
    return StageReport(name, kind, state, error, _places(job, name, artifact), _metrics(artifact), _samples(artifact))


def _places(job: job_pb2.JobConfig, name: str, artifact: artifact_pb2.Artifact | None) -> dict[str, str]:
    places, folder = {}, RunFolder.of(job)
    if artifact:
        is_model = artifact.WhichOneof("content") == "model"
        what = ("adapter" if artifact.model.adapter else "model") if is_model else "artifact"
        places[what] = str(folder.artifact(name))
        if (page := folder.artifact(name) / "report.html").is_file():
            places["report"] = str(page)
    checkpoints = folder.checkpoint_place(job, name)
    for what, place in (("checkpoints", checkpoints), ("tensorboard", str(folder.tensorboard(name)))):
        if "://" in place or Path(place).is_dir():  # a store is not asked
            places[what] = place
    return places


def _metrics(artifact: artifact_pb2.Artifact | None) -> dict[str, float]:
    return dict(artifact.model.metrics) if artifact else {}


def _samples(artifact: artifact_pb2.Artifact | None) -> tuple[dict[str, str], ...]:
    samples = artifact.model.samples if artifact else ()
    return tuple({"prompt": sample.prompt, "answer": sample.answer} for sample in samples)
