"""Prints what training stages take, a table a stage."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from finecut.launcher.planning import estimates
from finecut.launcher.planning.estimates import Estimate
from finecut.proto import job_pb2
from finecut.trainer.planning import proposals

_GIB = 2**30


def document_of(found: dict[str, Estimate], missing: dict[str, str]) -> dict[str, Any]:
    """For --format=json: bytes, seconds, hours, dollars."""
    return {name: _fields(estimate) for name, estimate in found.items()} | {
        name: {"unknown": reason} for name, reason in missing.items()
    }


def _fields(estimate: Estimate) -> dict[str, Any]:
    return {
        "hardware": str(estimate.hardware),
        "parameters": estimate.parameters.total,
        "trained_parameters": estimate.parameters.trained,
        "layout": proposals.describe(estimate.layout),
        "memory_bytes": asdict(estimate.memory) | {"total": estimate.memory.total},
        "device_memory_bytes": estimate.hardware.device.memory,
        "fits": estimate.fits,
        "cannot_fit": estimate.cannot_fit,
        "error_share": estimate.error,
        "flops_per_token": estimate.flops_per_token,
        "tokens_per_second": estimate.tokens_per_second,
        "step_seconds": estimate.step_seconds,
        "mfu": estimate.mfu,
        "steps": estimate.steps,
        "hours": estimate.hours,
        "cost_usd": estimate.cost_usd,
        "proposal": estimate.proposal,
        "notes": list(estimate.notes),
    }


def show_estimates(found: dict[str, Estimate], missing: dict[str, str], console: Console) -> None:
    """Prints them; nothing where no stage trains."""
    for estimate in found.values():
        console.print(f"{estimate.stage} on {estimate.hardware}, estimated", style="bold", markup=False)
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for name, value in _lines(estimate):
            table.add_row(name, value)
        console.print(table)
        console.print()
    for name, reason in missing.items():
        console.print(f"{name}: no estimate: {reason}", markup=False)


def _lines(estimate: Estimate) -> list[tuple[str, str]]:
    counted, device = estimate.parameters, estimate.hardware.device
    held = ", ".join(f"{name} {_size(size)}" for name, size in estimate.memory.parts().items())
    verdict = "" if estimate.fits else ": does not fit" if estimate.cannot_fit else _near(estimate)
    lines = [
        ("parameters", f"{counted.total:,}, of which {counted.trained:,} are trained"),
        ("memory", f"{_size(estimate.memory.total)} of {_size(device.memory)} a device{verdict}"),
        ("", held),
        ("layout", proposals.describe(estimate.layout)),
        (
            "speed",
            f"{estimate.tokens_per_second:,.0f} tokens/s, {estimate.step_seconds:,.3g} s a step,"
            f" {estimate.flops_per_token / 1e9:,.3g} GFLOP a token, MFU {estimate.mfu:.0%}",
        ),
        ("time", _time(estimate)),
    ]
    lines += [("proposal", estimate.proposal)] if estimate.proposal else []
    return lines + [("note", note) for note in estimate.notes]


def _near(estimate: Estimate) -> str:
    return f": may not fit, the estimate is right to {estimate.error:.0%}"


def _time(estimate: Estimate) -> str:
    if estimate.hours is None:
        return "not known before the data is prepared"
    cost = f", {estimate.cost_usd:,.2f} dollars" if estimate.cost_usd is not None else ""
    return f"{_duration(estimate.hours)} for {estimate.steps:,} steps{cost}, without start, evaluation and checkpoints"


def show_total(job: job_pb2.JobConfig, found: list[Estimate], not_counted: list[str], console: Console) -> None:
    """Prints hours and dollars of all training, beside the budget; nothing where no stage has an estimate."""
    total = estimates.total(found)
    if not found or total.hours is None:
        return
    cost = f", {total.cost_usd:,.2f} dollars" if total.cost_usd is not None else ""
    others = f"; {', '.join(not_counted)} not counted" if not_counted else ""
    console.print(f"training takes {_duration(total.hours)}{cost} together{others}", markup=False)
    if job.cluster.HasField("max_cost_usd") and total.cost_usd is not None:
        console.print(_budget(job.cluster.max_cost_usd, total.cost_usd), markup=False)


def _budget(budget: float, cost: float) -> str:
    """What becomes of cluster.max_cost_usd."""
    if cost <= budget:
        return f"the budget of {budget:,.2f} dollars covers it {budget / cost:,.1f} times"
    return (
        f"the budget of {budget:,.2f} dollars ends at {budget / cost:.0%} of it: the run stops with a checkpoint there;"
        f" raise cluster.max_cost_usd to {cost:,.2f} or more"
    )


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"


def _size(size: int) -> str:
    return f"{size / _GIB:,.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:,.1f} MiB"
