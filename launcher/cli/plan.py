"""`plan`: what would run, in which order, from what, to where, with which numbers; memory, time and cost of training.

Starts nothing. Exit code 2: a stage cannot fit, as `run` would refuse it. A service answers with the same.
"""

import re

from google.protobuf import json_format
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finecut.launcher import planner
from finecut.launcher.cli import clusters
from finecut.launcher.cli.estimates import show_estimates, show_total
from finecut.launcher.cli.output import Output
from finecut.launcher.cli.request import Request, job_from_config_or_run
from finecut.launcher.planning import plans
from finecut.proto import service_pb2
from finecut.proto.config import ConfigError, Problem, places

# Where Bazel keeps what a label names.
_BUILT = re.compile(r".*/bazel-out/[^/]+/bin/(.+)/([^/]+)")


def main(request: Request, output: Output) -> int:
    """Plans the job of --config, or of a run that was started before."""
    return tell(plans.of_job(job_from_config_or_run(request), request.hardware or ""), output)


def tell(found: service_pb2.PlanJobResponse, output: Output) -> int:
    """Prints a plan; the exit code."""
    accepted = found.config.accept_memory_plan

    def show_all(console: Console) -> None:
        show(planner.plan(found.config), console)
        clusters.show(found.machines, console)
        show_estimates(found.stages, console)
        show_total(found, console)
        if found.problems and accepted:
            console.print(f"starts although it may not fit: {accepted}", markup=False)

    document = json_format.MessageToDict(
        found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # Fields that are empty are there for programs, but in the config, where unset ones say something.
    document["config"] = json_format.MessageToDict(found.config, preserving_proto_field_name=True)
    output.result(document, show_all)
    if not found.problems or accepted:
        return 0
    if not output.as_json:
        output.invalid(ConfigError(Problem(problem.path, problem.message) for problem in found.problems))
    return 2


def show(plan: planner.Plan, console: Console) -> None:
    """Prints the stages as a table, a row each."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 1, 0))
    for heading in ("wave", "stage", "kind"):
        table.add_column(heading, no_wrap=True)
    table.add_column("reads, writes, numbers", overflow="fold")
    for number, wave in enumerate(plan.waves, start=1):
        for stage in wave:
            details = [
                *(f"<- {_shortened(place)}" for place in stage.reads),
                f"-> {_shortened(stage.writes)}",
                ", ".join(f"{name} {planner.text(value)}" for name, value in stage.numbers.items()),
            ]
            table.add_row(str(number), stage.name, stage.kind, Text("\n".join(details)))
    console.print(table)


def _shortened(place: str) -> str:
    """A built file as its label, a path below the folder where the user stands as relative, others as they are."""
    if built := _BUILT.fullmatch(place):
        return f"//{built[1]}:{built[2]}"
    return place.removeprefix(f"{places.user_folder()}/")
