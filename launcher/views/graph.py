"""The stages of a run as a drawing: a column a wave, a box a stage, and a bar a try on a line of time."""

from dataclasses import dataclass

from finecut.launcher.progress import duration
from finecut.launcher.views.run_view import RunView, StageView
from finecut.proto import service_pb2

BOX_WIDTH, BOX_HEIGHT = 170.0, 58.0
GAP_X, GAP_Y = 46.0, 14.0
_BARS = {service_pb2.SUCCEEDED: "succeeded", service_pb2.FAILED: "failed", service_pb2.RUNNING: "running"}


@dataclass(frozen=True)
class Box:
    """One stage: its corner, its texts; `state` chooses the colour."""

    x: float
    y: float
    name: str
    kind: str
    state: str
    time: str


@dataclass(frozen=True)
class Graph:
    """Boxes, and the paths of arrows from what is needed to what needs it."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    arrows: tuple[str, ...]


@dataclass(frozen=True)
class Bar:
    """One try of a stage: start and length in percent of the whole time."""

    start: float
    length: float
    state: str
    text: str


@dataclass(frozen=True)
class TimeLine:
    """Rows of bars by stage, and what the whole time is."""

    rows: tuple[tuple[str, tuple[Bar, ...]], ...]
    whole: str


def graph(view: RunView) -> Graph:
    """Places the stages."""
    boxes: dict[str, Box] = {}
    for column, wave in enumerate(view.waves):
        for row, stage in enumerate(wave):
            x, y = column * (BOX_WIDTH + GAP_X) + 1, row * (BOX_HEIGHT + GAP_Y) + 1
            boxes[stage.name] = Box(x, y, _cut(stage.name), stage.plan.kind, stage.report.state, _time(view, stage))
    taken = {(box.x, box.y) for box in boxes.values()}
    arrows = tuple(
        _arrow(boxes[needed], boxes[stage.name], taken) for stage in view.stages for needed in stage.plan.needs
    )
    rows = max(len(wave) for wave in view.waves)
    width = len(view.waves) * (BOX_WIDTH + GAP_X) - GAP_X + 2
    return Graph(width, rows * (BOX_HEIGHT + GAP_Y) - GAP_Y / 2 + 2, tuple(boxes.values()), arrows)


def time_line(view: RunView) -> TimeLine | None:
    """The tries on one line of time; None where nothing has started."""
    if view.started is None:
        return None
    whole = max(view.ended - view.started, 1e-3)
    rows = []
    for stage in view.stages:
        bars = []
        for each in stage.history.tries:
            ended = view.at if each.ended is None else each.ended
            state = "interrupted" if each.state == service_pb2.RUNNING and each.ended else _BARS.get(each.state, "")
            start = min(max(0.0, 100 * (each.started - view.started) / whole), 100.0)
            length = min(max(0.4, 100 * (ended - each.started) / whole), 100 - start) if start < 100 else 0.4
            bars.append(
                Bar(round(min(start, 99.6), 2), round(length, 2), state, duration(max(0, ended - each.started)))
            )
        rows.append((stage.name, tuple(bars)))
    return TimeLine(tuple(rows), duration(whole))


def _arrow(start: Box, end: Box, taken: set[tuple[float, float]]) -> str:
    """From one box to another; past the columns between them in a row that is free, or below the first one's row."""
    x0, y0 = start.x + BOX_WIDTH, start.y + BOX_HEIGHT / 2
    x1, y1 = end.x - 5, end.y + BOX_HEIGHT / 2
    passed = [x for x in sorted({x for x, _ in taken}) if start.x < x < end.x]
    if not passed:
        return f"M{x0:g},{y0:g} {_bend(x0, y0, x1, y1)}"
    free = [row.y + BOX_HEIGHT / 2 for row in (start, end) if not any((x, row.y) in taken for x in passed)]
    y = free[0] if free else start.y + BOX_HEIGHT + GAP_Y / 2
    first, last = passed[0], passed[-1] + BOX_WIDTH
    return f"M{x0:g},{y0:g} {_bend(x0, y0, first, y)} H{last:g} {_bend(last, y, x1, y1)}"


def _bend(x0: float, y0: float, x1: float, y1: float) -> str:
    middle = (x0 + x1) / 2
    return f"C{middle:g},{y0:g} {middle:g},{y1:g} {x1:g},{y1:g}"


def _time(view: RunView, stage: StageView) -> str:
    if not stage.history.tries:
        return ""
    tries = len(stage.history.tries)
    return duration(stage.history.seconds(view.at)) + (f", {tries} tries" if tries > 1 else "")


def _cut(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"
