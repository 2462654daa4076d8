"""`logs`: what happened in a run, from its first launcher on."""

import sys
import time
from collections.abc import Callable

from google.protobuf import json_format

from finecut.launcher import journal, planner, progress, runs
from finecut.launcher.cli.output import Output
from finecut.launcher.cli.request import Request, job_from_config_or_run
from finecut.proto import service_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, events

_POLL_SECONDS = 0.3


def main(request: Request, output: Output) -> int:
    """Prints all events, and with --follow those to come until the run's launcher has ended."""
    job = job_from_config_or_run(request)
    folder = RunFolder.of(job)
    if not folder.config.is_file():
        raise UserError(f"{folder.root} holds no run; start it with: run --config={request.config}")
    paths = [journal.path(folder), *(folder.events(stage) for stage in planner.plan(job).order)]
    positions, show = dict.fromkeys(paths, 0), printer(output)
    while True:
        at_work = runs.launcher_pid(folder) is not None  # before reading: what an ended one has written is all
        found: list[service_pb2.JobEvent] = []
        for path in paths:
            new, positions[path] = events.follow(path, positions[path])
            found += new
        for event in sorted(found, key=lambda event: event.at.ToNanoseconds()):
            show(event)
        if not (request.follow and at_work):
            return 0
        time.sleep(_POLL_SECONDS)


def printer(output: Output) -> Callable[[service_pb2.JobEvent], None]:
    """What prints an event: a line for people, or a line of JSON."""
    if not output.as_json:
        return progress.PlainView(output.console).event

    def show(event: service_pb2.JobEvent) -> None:
        sys.stdout.write(json_format.MessageToJson(event, preserving_proto_field_name=True, indent=None) + "\n")
        sys.stdout.flush()

    return show
