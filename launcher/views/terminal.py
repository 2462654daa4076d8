"""A run on a terminal, drawn anew every second: stages, ranks, step, time left, loss, memory."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from finecut.launcher.progress import duration
from finecut.launcher.views import cost, holdings
from finecut.launcher.views.run_view import RunView, StageView

_PERIOD_S = 1.0
_LEVELS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH, _SHORT_SPARK_WIDTH = 24, 6
_WIDE = 110  # columns
_STYLES = {"succeeded": "green", "failed": "bold red", "running": "yellow", "interrupted": "magenta"}
_AT_WORK = ("running", "waiting", "cancelling")  # the latter two: of a service's jobs
_NEARLY_FULL = 0.9
_MAX_RANKS = 16
_MAX_MESSAGES = 5


def watch(read: Callable[[], RunView], console: Console, period_s: float = _PERIOD_S) -> RunView:
    """Shows what `read` returns until the run is no longer at work; returns the last of it."""
    view = read()
    with Live(render(view), console=console, auto_refresh=False, transient=True) as live:
        while view.report.state in _AT_WORK:
            time.sleep(period_s)
            view = read()
            live.update(render(view), refresh=True)
    return view


def render(view: RunView) -> RenderableType:
    """One moment of a run."""
    heading = Text.assemble((view.report.name, "bold"), "  ", _state(view.report.state))
    if view.started is not None:
        heading.append(f"  {duration(view.ended - view.started)}", style="dim")
    usd = cost.of(view).usd
    if usd is not None:
        heading.append(f"  ${usd:,.2f} so far", style="dim")
    parts: list[RenderableType] = [heading, _Stages(view)]
    for stage in view.stages:
        if stage.report.state == "running":
            parts += _details(stage)
        elif stage.report.error:
            parts.append(Text(f"{stage.name}: {stage.report.error}", style="red"))
    parts += holdings.tables(view.holdings, view.at)
    return Group(*parts)


def sparkline(values: Sequence[float], width: int = _SPARK_WIDTH) -> str:
    """Values as a row of blocks, lowest to highest; several that share a place are their mean."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(n * len(values) / count) for n in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(_LEVELS[round((mean - low) * scale)] for mean in means)


@dataclass(frozen=True)
class _Stages:
    """The table of stages, as wide as the terminal allows: a narrow one has short sparklines and no bars."""

    view: RunView

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        is_wide = options.max_width >= _WIDE
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("stage", "state", "", "step", "time", "left", "loss", "", "tokens/s"):
            is_number = heading in ("step", "time", "left", "tokens/s")
            table.add_column(heading, justify="right" if is_number else "left", no_wrap=True)
        for stage in self.view.stages:
            table.add_row(*_row(self.view, stage, is_wide))
        if not is_wide:
            del table.columns[2]
        yield table


def _row(view: RunView, stage: StageView, is_wide: bool) -> Iterator[RenderableType]:
    history, latest, works = stage.history, stage.history.latest, stage.report.state == "running"
    yield stage.name
    yield _state(stage.report.state)
    if history.total_steps:
        yield ProgressBar(history.total_steps, min(history.step, history.total_steps), width=16)
    else:
        yield ""
    yield f"{history.step:,}/{history.total_steps:,}" if history.total_steps else ""
    yield duration(history.seconds(view.at)) if history.tries else ""
    left = history.seconds_left() if works else None
    yield duration(left) if left is not None else ""
    yield f"{latest['loss']:.4f}" if "loss" in latest else ""
    losses = [value for _, value in history.curves["loss"].finite()] if "loss" in history.curves else []
    yield Text(sparkline(losses, _SPARK_WIDTH if is_wide else _SHORT_SPARK_WIDTH), style="cyan")
    yield f"{latest['tokens_per_second']:,.0f}" if works and "tokens_per_second" in latest else ""


def _details(stage: StageView) -> Iterator[RenderableType]:
    latest = stage.history.latest
    used, limit = latest.get("peak_memory_gib"), latest.get("memory_limit_gib")
    if used is not None and limit:
        grid = Table.grid(padding=(0, 1))
        style = "red" if used > _NEARLY_FULL * limit else "green"
        bar = ProgressBar(limit, min(used, limit), width=24, complete_style=style, finished_style=style)
        grid.add_row(f"\n{stage.name}: memory", Group("", bar), f"\n{used:.2f} of {limit:.1f} GiB, fullest rank")
        yield grid
    if stage.ranks:
        table = Table(
            "rank", "host", Column("step", justify="right"), "doing", box=None, pad_edge=False, header_style="dim"
        )
        for rank in stage.ranks[:_MAX_RANKS]:
            doing = f"{rank.phase}, waits in {rank.collective}" if rank.collective else rank.phase
            table.add_row(str(rank.rank), rank.host, str(rank.step), doing)
        yield table
        if len(stage.ranks) > _MAX_RANKS:
            yield Text(f"and {len(stage.ranks) - _MAX_RANKS} more ranks", style="dim")
    for _, message in stage.history.messages[-_MAX_MESSAGES:]:
        yield Text(message, style="dim", overflow="ellipsis", no_wrap=True)


def _state(state: str) -> Text:
    return Text(state, style=_STYLES.get(state, "dim"))
