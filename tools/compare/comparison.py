"""What two runs have in common and what not: config, curves, final metrics, time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finecut.launcher.progress import duration
from finecut.launcher.views import cost, curves, page
from finecut.launcher.views.differences import Difference, differences
from finecut.launcher.views.plots import Plot, number, plot
from finecut.launcher.views.run_view import RunReader, RunView, StageView
from finecut.proto.run import files

_HERE = Path(__file__).parent
_NONE = ""
_BEFORE = "first_"  # of a metric that was measured before training, too


@dataclass(frozen=True)
class Row:
    """A number of both runs, as text; "" where one lacks it. `change` from left to right."""

    name: str
    left: str
    right: str
    change: str = ""


@dataclass(frozen=True)
class Section:
    """A stage that both runs have: its final metrics and its curves over each other, the main ones first."""

    name: str
    metrics: list[Row]
    plots: list[Plot]
    more_plots: list[Plot]

    @property
    def has_numbers(self) -> bool:
        """Whether there is anything to compare."""
        return bool(self.metrics or self.plots or self.more_plots)


@dataclass(frozen=True)
class Comparison:
    """All that is shown. `alone`: stages that only one has, with which."""

    left: str
    right: str
    facts: list[Row]
    differences: list[Difference]
    sections: list[Section]
    alone: list[tuple[str, str]]


def compare(left: Path, right: Path) -> Comparison:
    """Compares two run folders.

    Raises:
      UserError: One of them holds no run that can be read.
    """
    a, b = RunReader(left).read(), RunReader(right).read()
    names = _names(left, right)
    of_a, of_b = ({stage.name: stage for stage in view.stages} for view in (a, b))
    return Comparison(
        *names,
        facts=list(_facts(a, b)),
        differences=differences(a.job, b.job),
        sections=[_section(of_a[name], of_b[name], names) for name in of_a if name in of_b],
        alone=[(name, names[0]) for name in of_a if name not in of_b]
        + [(name, names[1]) for name in of_b if name not in of_a],
    )


def write(found: Comparison, path: Path) -> None:
    """Writes the page, one file that needs nothing but itself."""
    environment = page.templates(_HERE)
    files.write_atomically(path, environment.get_template("compare.html.jinja").render(found=found))


def _names(left: Path, right: Path) -> tuple[str, str]:
    """The folders' names, with as much of their paths as tells them apart."""
    a, b = left.absolute().parts, right.absolute().parts
    for length in range(1, max(len(a), len(b)) + 1):
        names = "/".join(a[-length:]), "/".join(b[-length:])
        if names[0] != names[1]:
            return names
    return f"{names[0]} (left)", f"{names[1]} (right)"  # a run beside itself


def _facts(a: RunView, b: RunView) -> Iterator[Row]:
    yield Row("state", a.report.state, b.report.state)
    yield Row("started", page.moment(a.started), page.moment(b.started))
    yield Row("code", a.code_version, b.code_version)
    costs = cost.of(a), cost.of(b)
    yield Row("time at work", *(duration(each.hours * 3600) for each in costs))
    if any(each.usd is not None for each in costs):
        yield Row("cost", *(_NONE if each.usd is None else f"${each.usd:,.2f}" for each in costs))


def _section(a: StageView, b: StageView, names: tuple[str, str]) -> Section:
    drawn = list(_plots(a, b, names)) if a.plan.kind != "data_prep" else []
    return Section(
        a.name,
        list(_metrics(_numbers(a), _numbers(b))),
        [each for each, is_main in drawn if is_main],
        [each for each, is_main in drawn if not is_main],
    )


def _numbers(stage: StageView) -> dict[str, float]:
    """Final metrics of a model, or results of an evaluation."""
    results = stage.artifact.evaluation.results if stage.artifact else ()
    return stage.report.metrics | {f"{result.task}: {result.metric}": result.value for result in results}


def _metrics(a: dict[str, float], b: dict[str, float]) -> Iterator[Row]:
    """One row a number; what was measured before training stands below it, where the runs did not start alike."""
    for name in sorted({*a, *b}, key=lambda name: (name.removeprefix(_BEFORE), name.startswith(_BEFORE))):
        left, right = a.get(name), b.get(name)
        if name.startswith(_BEFORE) and left == right:
            continue
        words = curves.title(name.removeprefix(_BEFORE)) + (", before training" if name.startswith(_BEFORE) else "")
        changed = "" if left is None or right is None or left == right else page.change(left, right)
        yield Row(words, _NONE if left is None else number(left), _NONE if right is None else number(right), changed)


def _plots(a: StageView, b: StageView, names: tuple[str, str]) -> Iterator[tuple[Plot, bool]]:
    """A plot a metric, and whether everybody looks at it. What was the same at every step of both is left out."""
    found: dict[str, bool] = {}
    for view in (a, b):
        for group in curves.groups(view.history):
            found.update({name: group.is_main for name in group.names if name not in found})
    for name, is_main in found.items():
        both = {
            label: curve for label, view in zip(names, (a, b), strict=True) if (curve := view.history.curves.get(name))
        }
        values = {value for curve in both.values() for _, value in curve.finite()}
        if (is_main or len(values) > 1) and (drawn := plot(curves.title(name), curves.unit(name), both)):
            yield drawn, is_main
