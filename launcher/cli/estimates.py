"""Prints what training stages take, a table a stage."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from finecut.proto import plan_pb2, service_pb2

_GIB = 2**30


def show_estimates(stages: Iterable[plan_pb2.StagePlan], console: Console) -> None:
    """Prints them; nothing where no stage trains."""
    for stage in stages:
        if stage.HasField("estimate"):
            console.print(f"{stage.name} on {stage.estimate.hardware}, estimated", style="bold", markup=False)
            table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
            for name, value in _lines(stage.estimate):
                table.add_row(name, value)
            console.print(table)
            console.print()
    for stage in stages:
        if stage.HasField("no_estimate"):
            console.print(f"{stage.name}: no estimate: {stage.no_estimate}", markup=False)


def _lines(estimate: plan_pb2.StageEstimate) -> list[tuple[str, str]]:
    memory, device = estimate.memory, estimate.device_memory_bytes
    held = ", ".join(
        f"{field.name.removesuffix('_bytes')} {_size(size)}"
        for field, size in memory.ListFields()
        if field.name != "total_bytes"
    )
    verdict = "" if estimate.fits else ": does not fit" if estimate.cannot_fit else _near(estimate)
    lines = [
        ("parameters", f"{estimate.parameter_count:,}, of which {estimate.trained_parameter_count:,} are trained"),
        ("memory", f"{_size(memory.total_bytes)} of {_size(device)} a device{verdict}"),
        ("", held),
        ("layout", estimate.layout.description),
        (
            "speed",
            f"{estimate.tokens_per_second:,.0f} tokens/s, {estimate.step_seconds:,.3g} s a step,"
            f" {estimate.flops_per_token / 1e9:,.3g} GFLOP a token, MFU {estimate.mfu:.0%}",
        ),
        ("time", _time(estimate)),
    ]
    lines += [("proposal", estimate.proposal)] if estimate.proposal else []
    return lines + [("note", note) for note in estimate.notes]


def _near(estimate: plan_pb2.StageEstimate) -> str:
    return f": may not fit, the estimate is right to {estimate.error_share:.0%}"


def _time(estimate: plan_pb2.StageEstimate) -> str:
    if not estimate.HasField("hours"):
        return "not known before the data is prepared"
    cost = f", {_dollars(estimate.cost_usd)}" if estimate.HasField("cost_usd") else ""
    steps = f"{estimate.step_count:,} step{'' if estimate.step_count == 1 else 's'}"
    return f"{_duration(estimate.hours)} for {steps}{cost}, without start, evaluation and checkpoints"


def show_total(found: service_pb2.PlanJobResponse, console: Console) -> None:
    """Prints hours and dollars of all training, beside the budget; nothing where no stage has an estimate."""
    total, cluster = found.total, found.config.cluster
    if not any(stage.HasField("estimate") for stage in found.stages) or not total.HasField("hours"):
        return
    cost = f", {_dollars(total.cost_usd)}" if total.HasField("cost_usd") else ""
    others = f"; {', '.join(total.not_counted)} not counted" if total.not_counted else ""
    console.print(f"training takes {_duration(total.hours)}{cost} together{others}", markup=False)
    if cluster.HasField("max_cost_usd") and total.HasField("cost_usd"):
        console.print(_budget(cluster.max_cost_usd, total.cost_usd), markup=False)


def _budget(budget: float, cost: float) -> str:
    """What becomes of cluster.max_cost_usd."""
    if cost <= budget:
        return f"the budget of {budget:,.2f} dollars covers it {budget / cost:,.1f} times"
    return (
        f"the budget of {budget:,.2f} dollars ends at {budget / cost:.0%} of it: the run stops with a checkpoint there;"
        f" raise cluster.max_cost_usd to {cost:,.2f} or more"
    )


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:,.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:,.2g} seconds"


def _dollars(usd: float) -> str:
    return f"{usd:,.2f} dollars" if usd >= 0.01 or not usd else "under a cent"


def _size(size: int) -> str:
    return f"{size / _GIB:,.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:,.1f} MiB"
