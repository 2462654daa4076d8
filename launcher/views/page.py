"""The page of a run: one file that needs no server, or what a server sends while the run is at work."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from google.protobuf import text_format

from finecut.dataprep.report import html
from finecut.launcher.progress import duration
from finecut.launcher.views import cost, curves, graph, previous
from finecut.launcher.views.plots import Plot, number, plot
from finecut.launcher.views.run_view import RunReader, RunView, StageView
from finecut.proto import artifact_pb2
from finecut.proto.run import RunFolder, files

MAX_SHOWN_MESSAGES = 200
_HIDDEN_METRICS = ("first_",)


@dataclass(frozen=True)
class Metric:
    """A final number; `before` where it was measured before training too, else empty."""

    name: str
    before: str
    after: str
    change: str


@dataclass(frozen=True)
class StageSection:
    """What the page says about one stage."""

    view: StageView
    time: str
    left: str
    metrics: list[Metric]
    results: Sequence[artifact_pb2.EvaluationArtifact.Result]
    samples: Sequence[artifact_pb2.ModelArtifact.Sample]
    plots: list[Plot]
    more_plots: list[Plot]
    unchanged: list[tuple[str, float]]
    messages: list[tuple[str, str]]
    data_report: str


@dataclass(frozen=True)
class Live:
    """What a served page has beside a file: where its parts come from, and links."""

    tensorboard: str
    runs: str


def write(root: Path) -> Path:
    """Writes the page of a run into its folder.

    Raises:
      UserError: The folder holds no run that can be read.
    """
    view = RunReader(root).read()
    path = RunFolder.of(view.job).page
    files.write_atomically(path, render(view))
    return path


def render(view: RunView, live: Live | None = None, body_only: bool = False) -> str:
    """The page of a run. `body_only`: what a page that is open replaces its content with."""
    before = previous.find(view)
    template = templates().get_template("live.html.jinja" if body_only else "page.html.jinja")
    return template.render(
        view=view,
        live=live,
        graph=graph.graph(view),
        time_line=graph.time_line(view),
        sections=[_section(view, stage) for stage in view.stages],
        previous=before,
        cost=cost.of(view),
        config=text_format.MessageToString(view.job),
    )


def templates(*more: Path) -> jinja2.Environment:
    """The templates of this folder and of others, with the filters that they use."""
    environment = html.environment(Path(__file__).parent, *more)
    environment.filters["number"] = number
    environment.filters["moment"] = moment
    environment.filters["duration"] = duration
    environment.globals["box"] = (graph.BOX_WIDTH, graph.BOX_HEIGHT)
    return environment


def moment(seconds: float | None) -> str:
    """A time of day with its date, in UTC: pages are read elsewhere."""
    if not seconds:
        return ""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _section(view: RunView, stage: StageView) -> StageSection:
    history, content = stage.history, stage.artifact
    left = history.seconds_left() if stage.report.state == "running" else None
    page = Path(stage.report.places.get("report", ""))
    plots, more_plots, unchanged = _plots(stage)
    return StageSection(
        view=stage,
        time=duration(history.seconds(view.at)) if history.tries else "",
        left=duration(left) if left else "",
        metrics=final_metrics(_own_metrics(view, stage)),
        results=content.evaluation.results if content else (),
        samples=content.model.samples if content else (),
        plots=plots,
        more_plots=more_plots,
        unchanged=unchanged,
        messages=[(moment(at), text) for at, text in history.messages[-MAX_SHOWN_MESSAGES:]],
        data_report=page.relative_to(view.report.folder).as_posix() if page.name else "",
    )


def _own_metrics(view: RunView, stage: StageView) -> dict[str, float]:
    """Without what an export carries on of the model that it was made from."""
    if stage.plan.kind != "export":
        return stage.report.metrics
    sources = [other for other in view.stages if other.name in stage.plan.needs]
    carried = {item for other in sources for item in other.report.metrics.items()}
    return {name: value for name, value in stage.report.metrics.items() if (name, value) not in carried}


def _plots(stage: StageView) -> tuple[list[Plot], list[Plot], list[tuple[str, float]]]:
    """What everybody looks at; all else that changes; all else. Data preparation only counts up, and draws nothing."""
    main: list[Plot] = []
    others: list[Plot] = []
    unchanged: list[tuple[str, float]] = []
    for group in curves.groups(stage.history, stage.plan.kind) if stage.plan.kind != "data_prep" else ():
        changing: curves.Group | None = group
        if not group.is_main:
            changing, same = curves.steady(stage.history, group)
            alone = len(group.names) == 1
            unchanged += [(name if alone else f"{group.title}: {name}", value) for name, value in same.items()]
        if changing and (drawn := plot(group.title, group.unit, curves.select(stage.history, changing))):
            (main if group.is_main else others).append(drawn)
    return main, others, unchanged


def final_metrics(metrics: dict[str, float]) -> list[Metric]:
    """Final numbers, first those that were measured before training too, each with what it was then."""
    found = []
    for name, after in sorted(metrics.items(), key=lambda item: (f"first_{item[0]}" not in metrics, item[0])):
        if name.startswith(_HIDDEN_METRICS):
            continue
        before = metrics.get(f"first_{name}")
        changed = "" if before is None else change(before, after)
        found.append(Metric(curves.title(name), "" if before is None else number(before), number(after), changed))
    return found


def change(before: float, after: float) -> str:
    """In percent, or the difference where a share of what was before says nothing."""
    return f"{after / before - 1:+.1%}" if before > 0 and after >= 0 else f"{after - before:+.4g}"
