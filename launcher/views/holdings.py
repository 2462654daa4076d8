"""What a run holds outside of its folder: machines, which cost money, and endpoints. From records or from a service."""

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import RenderableType
from rich.table import Table

from finecut.launcher.progress import duration
from finecut.launcher.reconcile import nodes
from finecut.launcher.reconcile.nodes import NodeState
from finecut.proto import service_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder
from finecut.trainer.serving.endpoints import Endpoint, endpoints_of

_MAX_NODES = 24


@dataclass(frozen=True)
class Holdings:
    """Machines, oldest first and with those that have ended, and endpoints by the stage that deployed to them."""

    nodes: tuple[NodeState, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()


def of_run(folder: RunFolder) -> Holdings:
    """From the records of this machine. One that cannot be read counts as empty: the rest of a run is worth showing."""
    try:
        machines = tuple(nodes.nodes_of(folder))
    except UserError:
        machines = ()
    return Holdings(machines, tuple(endpoints_of(folder)))


def of_job(job: service_pb2.Job) -> Holdings:
    """From what a service says of a job."""
    machines = tuple(
        NodeState(
            id=node.id,
            group=node.group,
            instance_type=node.instance_type,
            zone=node.zone,
            market=node.market,
            state=node.state,
            since=node.since.ToNanoseconds() / 1e9,
            address=node.address,
            started_at=node.started_at.ToNanoseconds() / 1e9,
            usd_per_hour=node.usd_per_hour,
            cost_usd=node.cost_usd,
            reason=node.reason,
        )
        for node in job.nodes
    )
    endpoints = tuple(
        Endpoint(
            name=endpoint.name,
            url=endpoint.url,
            stage=endpoint.stage,
            state=endpoint.state,
            message=endpoint.message,
            stable=endpoint.stable or None,
            candidate=endpoint.candidate or None,
            share_percent=endpoint.share_percent,
            process_id=0,  # of another machine
        )
        for endpoint in job.endpoints
    )
    return Holdings(machines, endpoints)


def write(found: Holdings, job: service_pb2.Job) -> None:
    """Into what a service says of a job."""
    del job.nodes[:], job.endpoints[:]
    for node in found.nodes:
        job.nodes.add(
            id=node.id,
            group=node.group,
            instance_type=node.instance_type,
            zone=node.zone,
            market=node.market,
            state=node.state,
            since=_timestamp(node.since),
            address=node.address,
            started_at=_timestamp(node.started_at),
            usd_per_hour=node.usd_per_hour,
            cost_usd=node.cost_usd,
            reason=node.reason,
        )
    for endpoint in found.endpoints:
        job.endpoints.add(
            name=endpoint.name,
            url=endpoint.url,
            stage=endpoint.stage,
            state=endpoint.state,
            message=endpoint.message,
            stable=endpoint.stable or "",
            candidate=endpoint.candidate or "",
            share_percent=endpoint.share_percent,
        )


def tables(found: Holdings, now: float) -> Iterator[RenderableType]:
    """For people; nothing where there is nothing. Machines that are there come before those that have ended."""
    if found.nodes:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("node", "group", "type", "zone", "market", "state", "for", "cost"):
            table.add_column(heading, justify="right" if heading in ("for", "cost") else "left")
        ordered = sorted(found.nodes, key=lambda node: node.state == "ended")
        for node in ordered[:_MAX_NODES]:
            state = f"{node.state} ({node.reason})" if node.reason else node.state
            shown = (node.id, node.group, node.instance_type, node.zone, node.market.lower(), state)
            table.add_row(*shown, duration(max(0.0, now - node.since)), f"${node.cost_usd:,.2f}")
        yield table
        if len(ordered) > _MAX_NODES:
            yield f"and {len(ordered) - _MAX_NODES} more nodes"
    if found.endpoints:
        table = Table("endpoint", "stage", "state", "version", "url", box=None, pad_edge=False, header_style="bold")
        for endpoint in found.endpoints:
            change = f" -> {endpoint.candidate} ({endpoint.share_percent}%)" if endpoint.candidate else ""
            version = f"{endpoint.stable or ''}{change}"
            table.add_row(endpoint.name, endpoint.stage, endpoint.state, version, endpoint.url)
        yield table


def _timestamp(seconds: float) -> Timestamp:
    found = Timestamp()
    found.FromNanoseconds(round(seconds * 1e9))
    return found
