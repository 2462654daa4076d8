"""Every verb with --server: asks a service, and shows its answers as the verbs show those of this machine."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from finecut.launcher import progress
from finecut.launcher.cli import plan, status
from finecut.launcher.cli.logs import printer
from finecut.launcher.cli.output import Output, terminal
from finecut.launcher.cli.request import Request
from finecut.launcher.client import JobClient, ServiceError
from finecut.launcher.views import holdings
from finecut.launcher.views import terminal as terminal_view
from finecut.launcher.views.remote_view import RemoteReader
from finecut.proto import job_pb2, service_pb2
from finecut.proto.config import ConfigError, UserError, load_submission, places

_INVALID = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


def main(request: Request, output: Output) -> int:
    """Calls the service. Exit codes as without it: 2 where the input is refused, 1 where the service is not there."""
    verbs: dict[str, Callable[[JobClient, Request, Output], int]] = {
        "run": _run,
        "submit": _submit,
        "validate": _validate,
        "plan": _plan,
        "status": _status,
        "logs": _logs,
        "cancel": _cancel,
    }
    if request.verb not in verbs:
        raise UserError(f"{request.verb} takes no --server; a service goes on with its jobs by itself")
    assert request.server is not None
    folder = places.user_folder() / Path(request.certificates).expanduser() if request.certificates else None
    try:
        with JobClient(request.server, folder) as client:
            return verbs[request.verb](client, request, output)
    except ServiceError as error:
        if error.code in _INVALID:
            output.invalid(UserError(str(error)))
            return 2
        output.failed(str(error))
        return 1


def _run(client: JobClient, request: Request, output: Output) -> int:
    job = client.submit(_job(request), request.request_id)
    console = terminal(stderr=True) if output.as_json else output.console
    console.print(f"job {job.id} at {client.address}; stop watching with Ctrl-C, stop it with: cancel {job.id}")
    view = progress.PlainView(console)
    for event in client.watch(job.id):
        view.event(event)
    return _show_job(client.get(job.id), output, ended=True)


def _submit(client: JobClient, request: Request, output: Output) -> int:
    job = client.submit(_job(request), request.request_id)
    output.result(_document(job), lambda console: console.print(job.id, markup=False))
    return 0


def _validate(client: JobClient, request: Request, output: Output) -> int:
    if problems := client.validate(_job(request)):
        raise ConfigError(problems)
    document: dict[str, Any] = {"problems": []}
    output.result(
        document, lambda console: console.print(f"{request.config} is valid for {client.address}", markup=False)
    )
    return 0


def _plan(client: JobClient, request: Request, output: Output) -> int:
    return plan.tell(client.plan(_job(request), request.hardware or ""), output)


def _status(client: JobClient, request: Request, output: Output) -> int:
    if request.watch:
        _watch(client, _id(request), request, output)
    if request.run is not None:
        return _show_job(client.get(request.run), output, ended=False)
    jobs = list(client.jobs())

    def show(console: Console) -> None:
        table = Table("job", "state", "principal", "submitted", box=None, pad_edge=False, header_style="bold")
        for job in jobs:
            at = job.created_at.ToDatetime().isoformat(sep=" ", timespec="seconds")
            table.add_row(job.id, _state(job), job.principal, f"{at} UTC")
        console.print(table if jobs else f"no jobs of yours at {client.address}")

    output.result({"jobs": [_document(job) for job in jobs]}, show)
    return 0


def _watch(client: JobClient, job_id: str, request: Request, output: Output) -> None:
    """Returns once the job has ended. Where nobody draws, its events are printed as lines."""
    status.refuse_to_draw_json(request)
    if output.console.is_terminal:
        terminal_view.watch(RemoteReader(client, job_id).read, output.console)
        return
    view = progress.PlainView(output.console)
    for event in client.watch(job_id):
        view.event(event)


def _logs(client: JobClient, request: Request, output: Output) -> int:
    job, show = client.get(_id(request)), printer(output)
    for event in client.watch(job.id):
        show(event)
        if not request.follow and event.sequence >= job.last_sequence:
            break
    return 0


def _cancel(client: JobClient, request: Request, output: Output) -> int:
    client.cancel(_id(request))
    return _show_job(client.wait(_id(request)), output, ended=False)


def _show_job(job: service_pb2.Job, output: Output, ended: bool) -> int:
    def show(console: Console) -> None:
        console.print(f"{job.id}: {_state(job)}", style="bold")
        if job.error:
            console.print(job.error, markup=False)
        table = Table("stage", "state", "step", "result", box=None, pad_edge=False, header_style="bold")
        for stage in job.stages:
            step = f"{stage.step:,}/{stage.total_steps:,}" if stage.total_steps else ""
            state = service_pb2.JobState.Name(stage.state).lower()
            table.add_row(stage.name, state, step, stage.error or stage.artifact)
        console.print(table)
        for part in holdings.tables(holdings.of_job(job), time.time()):
            console.print(part)
        if job.HasField("cost_usd"):
            console.print(f"cost so far ${job.cost_usd:,.2f}", markup=False)
        console.print(f"run folder  {os.path.join(job.config.storage.root, job.config.name)}", markup=False)

    output.result(_document(job), show)
    return 1 if ended and job.state != service_pb2.SUCCEEDED else 0


def _state(job: service_pb2.Job) -> str:
    name = service_pb2.JobState.Name(job.state).lower()
    return "cancelling" if job.cancel_requested and job.state <= service_pb2.RUNNING else name


def _job(request: Request) -> job_pb2.JobConfig:
    if request.run is not None:
        raise UserError(f"{request.verb} takes no argument {request.run!r}; name the job file with --config")
    if request.config is None:
        raise UserError(f"--config is not set; name a job file, for example: {request.verb} --config=job.textproto")
    return load_submission(request.config, overrides=request.overrides, storage_root=request.storage_root)


def _id(request: Request) -> str:
    if request.run is None:
        raise UserError(f"{request.verb} needs the id of a job, as submit printed it; status lists yours")
    return request.run


def _document(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)
