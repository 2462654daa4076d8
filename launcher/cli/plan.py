"""`plan`: what would run, in which order, from what, to where, with which numbers; memory, time and cost of training.

Starts nothing. Exit code 2: a stage cannot fit, as `run` would refuse it.
"""

import re
from dataclasses import asdict
from typing import Any

from google.protobuf import json_format
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finecut.launcher import planner
from finecut.launcher.cli import clusters
from finecut.launcher.cli.estimates import document_of, show_estimates, show_total
from finecut.launcher.cli.output import Output
from finecut.launcher.cli.request import Request, job_from_config_or_run
from finecut.launcher.planning import admission, estimates, hardware, serving, workloads
from finecut.launcher.providers import registry
from finecut.proto import job_pb2
from finecut.proto.config import ConfigError, places

# Where Bazel keeps what a label names.
_BUILT = re.compile(r".*/bazel-out/[^/]+/bin/(.+)/([^/]+)")


def main(request: Request, output: Output) -> int:
    """Plans the job of --config, or of a run that was started before."""
    job = job_from_config_or_run(request)
    plan = planner.plan(job)
    cluster = registry.plan(job)
    machines = [hardware.parse(request.hardware)] if request.hardware else hardware.choices(job)
    planned = [estimates.of_job(job, choice) for choice in machines]
    found, missing = planned[0] if planned else ({}, _on_other_hosts(job))
    document = _document(plan) | {
        "cluster": asdict(cluster),
        "config": json_format.MessageToDict(job, preserving_proto_field_name=True),
        "estimates": document_of(found, missing),
        "total": asdict(estimates.total(found.values())) | {"not_counted": _not_counted(plan, found)},
    }

    def show_all(console: Console) -> None:
        show(plan, console)
        clusters.show(cluster, console)
        show_estimates(found, missing, console)
        show_total(job, list(found.values()), _not_counted(plan, found), console)
        if refused and job.accept_memory_plan:
            console.print(f"starts although it may not fit: {job.accept_memory_plan}", markup=False)

    refused = [problem for choice, _ in planned for problem in admission.problems(choice.values())]
    refused += serving.problems(job, machines)
    output.result(document | {"problems": [asdict(problem) for problem in refused]}, show_all)
    if not refused or job.accept_memory_plan:
        return 0
    if not output.as_json:
        output.invalid(ConfigError(refused))
    return 2


def _on_other_hosts(job: job_pb2.JobConfig) -> dict[str, str]:
    """Why the stages of static hosts have no estimate."""
    reason = "which GPUs the hosts have shows only there; plan for them with --hardware=8xH100"
    return {stage.name: reason for stage in job.stages if workloads.is_training(stage)}


def _not_counted(plan: planner.Plan, found: dict[str, estimates.Estimate]) -> list[str]:
    return [name for name in plan.order if name not in found]


def show(plan: planner.Plan, console: Console) -> None:
    """Prints a plan as a table, a row a stage."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 1, 0))
    for heading in ("wave", "stage", "kind"):
        table.add_column(heading, no_wrap=True)
    table.add_column("reads, writes, numbers", overflow="fold")
    for number, wave in enumerate(plan.waves, start=1):
        for stage in wave:
            details = [
                *(f"<- {_shortened(place)}" for place in stage.reads),
                f"-> {_shortened(stage.writes)}",
                ", ".join(f"{name} {_text(value)}" for name, value in stage.numbers.items()),
            ]
            table.add_row(str(number), stage.name, stage.kind, Text("\n".join(details)))
    console.print(table)


def _shortened(place: str) -> str:
    """A built file as its label, a path below the folder where the user stands as relative, others as they are."""
    if built := _BUILT.fullmatch(place):
        return f"//{built[1]}:{built[2]}"
    return place.removeprefix(f"{places.user_folder()}/")


def _document(plan: planner.Plan) -> dict[str, Any]:
    return {"name": plan.name, "root": plan.root, "waves": [[asdict(stage) for stage in wave] for wave in plan.waves]}


def _text(value: str | int | float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else value
