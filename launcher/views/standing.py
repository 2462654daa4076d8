"""Where a run stands, for `status`: stages with steps, machines, cost, endpoints, places. Once, in words or JSON."""

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from finecut.launcher.progress import duration
from finecut.launcher.report import RunReport
from finecut.launcher.views import cost, holdings
from finecut.launcher.views.run_view import RunView


def document(view: RunView) -> dict[str, Any]:
    """For JSON: the report of the run, with a step and a time for each stage, nodes, cost and endpoints."""
    found = view.report.document()
    for entry, stage in zip(found["stages"], view.stages, strict=True):
        entry |= {
            "step": stage.history.step,
            "total_steps": stage.history.total_steps,
            "seconds": round(stage.history.seconds(view.at), 1),
            "numbers": stage.history.latest,
        }
    return found | dataclasses.asdict(view.holdings) | {"cost": dataclasses.asdict(cost.of(view))}


def show(view: RunView, console: Console) -> None:
    """For people."""
    report = view.report
    console.print(f"{report.name}: {report.state}", style="bold")
    console.print(_stages(view, report))
    for part in holdings.tables(view.holdings, view.at):
        console.print()
        console.print(part)
    found = cost.of(view)
    if found.usd is not None:
        console.print(f"\n{'cost so far':<28}${found.usd:,.2f}", markup=False)
    report.show_places(console)


def _stages(view: RunView, report: RunReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("stage", "kind", "state", "step", "time", "result"):
        table.add_column(heading, overflow="fold")
    for stage in view.stages:
        history = stage.history
        step = f"{history.step:,}/{history.total_steps:,}" if history.total_steps else ""
        time = duration(history.seconds(view.at)) if history.tries else ""
        table.add_row(stage.name, stage.report.kind, stage.report.state, step, time, stage.report.result)
    return table
