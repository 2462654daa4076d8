"""Whether a job fits the machines that it asks for: looked at before anything is bought."""

from __future__ import annotations

from collections.abc import Iterator

from finecut.launcher.providers import host_rules
from finecut.launcher.providers.aws import cost
from finecut.launcher.providers.aws.instance_types import BY_NAME, InstanceType
from finecut.proto import cluster_pb2, job_pb2
from finecut.proto.config import Problem, UserError, layout
from finecut.proto.config.errors import suggestion
from finecut.trainer import stage_kinds
from finecut.trainer.rl import engine_gpus

_Market = cluster_pb2.NodeGroup.Market


def check(job: job_pb2.JobConfig) -> Iterator[Problem]:
    """Everything in a job on AWS that cannot work, with what is nearest."""
    groups = job.cluster.node_groups
    if not groups:
        yield Problem("cluster.node_groups", "is empty; name at least one group of nodes to buy")
    names = [group.name for group in groups]
    for index, group in enumerate(groups):
        path = f"cluster.node_groups[{index}]"
        if names.index(group.name) < index:
            yield Problem(f"{path}.name", f'"{group.name}" is the name of two groups; names are unique')
        yield from _check_types(job, group, path)
        yield from _check_market(group, path)
        yield from _check_scaling(group, path)
    if all(group.instance_types and BY_NAME.keys() >= set(group.instance_types) for group in groups):
        yield from _check_resources(job)
        yield from _check_ranks(job)
        yield from cost.check(job)
    yield from _check_folders(job)
    yield from _check_hosts(job.cluster.aws.hosts)


def num_ranks(job: job_pb2.JobConfig) -> int:
    """GPUs of the groups that train and of hosts of one's own: one rank each."""
    train = [group for group in job.cluster.node_groups if group.role == cluster_pb2.NodeGroup.TRAIN]
    hosts = sum(host.gpu_count for host in job.cluster.aws.hosts.hosts)
    return hosts + sum(group.node_count * BY_NAME[group.instance_types[0]].gpu_count for group in train)


def _check_types(job: job_pb2.JobConfig, group: cluster_pb2.NodeGroup, path: str) -> Iterator[Problem]:
    if not group.instance_types:
        yield Problem(f"{path}.instance_types", "is empty; name instance types in order of preference")
        return
    unknown = [(place, name) for place, name in enumerate(group.instance_types) if name not in BY_NAME]
    for place, name in unknown:
        yield Problem(
            f"{path}.instance_types[{place}]",
            f'"{name}" is not an instance type that Finecut knows; {suggestion(name, list(BY_NAME))}',
        )
    if unknown:
        return
    kinds = [BY_NAME[name] for name in group.instance_types]
    for place, kind in enumerate(kinds):
        if not kind.gpu_count and group.role != cluster_pb2.NodeGroup.DATA:
            with_gpus = ", ".join(entry.name for entry in BY_NAME.values() if entry.gpu_count == 1)
            yield Problem(
                f"{path}.instance_types[{place}]",
                f"{kind.name} has no GPUs, which role {cluster_pb2.NodeGroup.Role.Name(group.role)} works with; use it "
                f"in a group of role DATA, or use a type such as {with_gpus}",
            )
            return
    for place, kind in enumerate(kinds[1:], start=1):
        if kind.gpu_count != kinds[0].gpu_count:
            yield Problem(
                f"{path}.instance_types[{place}]",
                f"{kind.name} has {kind.gpu_count} GPUs and {kinds[0].name} has {kinds[0].gpu_count}: the number of "
                f"ranks would depend on what is bought; use {_names_with(kinds[0].gpu_count)}",
            )
    yield from _check_network(job.cluster.network, kinds, path)


def _check_network(network: cluster_pb2.NetworkExpectation, kinds: list[InstanceType], path: str) -> Iterator[Problem]:
    wanted = network.min_bandwidth_gbps
    for place, kind in enumerate(kinds):
        if wanted > kind.network_gbps:
            fast = [entry for entry in BY_NAME.values() if entry.network_gbps >= wanted]
            near = ", ".join(entry.name for entry in fast if entry.gpu_count == kind.gpu_count) or "a smaller figure"
            yield Problem(
                f"{path}.instance_types[{place}]",
                f"{kind.name} has {kind.network_gbps:g} Gbit/s, less than cluster.network.min_bandwidth_gbps, "
                f"{wanted:g}; use {near}",
            )


def _check_market(group: cluster_pb2.NodeGroup, path: str) -> Iterator[Problem]:
    reserved = group.market in (_Market.RESERVATION, _Market.CAPACITY_BLOCK)
    if reserved and not group.reservation_id:
        yield Problem(
            f"{path}.reservation_id", f"is required by market {_Market.Name(group.market)}; name the reservation"
        )
    if group.reservation_id and not reserved:
        yield Problem(f"{path}.reservation_id", "says nothing without market RESERVATION or CAPACITY_BLOCK; set one")
    if group.flexible and group.market != _Market.SPOT:
        yield Problem(
            f"{path}.flexible", f"is for market SPOT, not {_Market.Name(group.market)}; unset it, or use SPOT"
        )
    if reserved and len(group.instance_types) > 1:
        yield Problem(f"{path}.instance_types", "a reservation is of one type; name that one alone")


def _check_hosts(static: cluster_pb2.Static) -> Iterator[Problem]:
    path = "cluster.aws.hosts"
    yield from host_rules.check(static, path)
    if static.launcher_address:
        yield Problem(f"{path}.launcher_address", "is for hosts alone; set cluster.aws.launcher_address")
    for index, host in enumerate(static.hosts):
        for field in ("cpu_count", "gpu_count"):
            if not host.HasField(field):
                yield Problem(
                    f"{path}.hosts[{index}].{field}",
                    "is required beside rented nodes: the ranks are counted before anything is bought",
                )


def _check_scaling(group: cluster_pb2.NodeGroup, path: str) -> Iterator[Problem]:
    if not group.HasField("scaling"):
        return
    if group.role == cluster_pb2.NodeGroup.TRAIN:
        yield Problem(
            f"{path}.scaling",
            "is for groups of role ROLLOUT and DATA, whose work waits for nodes one by one; a group that trains keeps "
            "its node_count, and goes on with fewer ranks where training.recovery.min_world_size lets it",
        )
    if group.role == cluster_pb2.NodeGroup.SERVE:
        yield Problem(
            f"{path}.scaling", "is for groups of role ROLLOUT and DATA; replicas are as many as deploy.replica_count"
        )
    fewest, most = group.scaling.min_nodes, group.scaling.max_nodes
    if not fewest <= group.node_count <= most:
        yield Problem(
            f"{path}.node_count",
            f"{group.node_count} nodes at the start are not within scaling, {fewest} to {most}; set one of them",
        )


def _check_resources(job: job_pb2.JobConfig) -> Iterator[Problem]:
    """Stages that ask for more GPUs than there will be."""
    there = num_ranks(job)
    for index, stage in enumerate(job.stages):
        asked = stage.resources.gpu_count
        if asked > there:
            train = next((g for g in job.cluster.node_groups if g.role == cluster_pb2.NodeGroup.TRAIN), None)
            per_node = BY_NAME[train.instance_types[0]].gpu_count if train else 0
            more = f", or {-(-asked // per_node)} nodes of {train.instance_types[0]}" if train and per_node else ""
            yield Problem(
                f"stages[{index}].resources.gpu_count",
                f"{asked} GPUs are asked for and the nodes that train have {there}; use at most {there}{more}",
            )


def _check_ranks(job: job_pb2.JobConfig) -> Iterator[Problem]:
    """The same rules as on one machine, with the ranks that the nodes will have."""
    train = [g for g in job.cluster.node_groups if g.role == cluster_pb2.NodeGroup.TRAIN]
    works = [(i, stage.WhichOneof("work") or "") for i, stage in enumerate(job.stages)]
    trains = [(i, work) for i, work in works if work in stage_kinds.TRAINED]
    if trains and not train:
        yield Problem("cluster.node_groups", "no group has role TRAIN, but a stage trains; add one")
        return
    has_own_nodes = any(group.role == cluster_pb2.NodeGroup.ROLLOUT for group in job.cluster.node_groups)
    for index, work in trains:
        message = getattr(job.stages[index], work)
        mesh = message.training.parallelism
        try:
            engines = 0 if has_own_nodes else engine_gpus.reserved_for_engines(job.stages[index], num_ranks(job))
        except UserError as error:
            yield Problem(f"stages[{index}].{work}", str(error))
            continue
        sizes = layout.Layout(
            world_size=num_ranks(job) - engines,
            shard_size=mesh.shard_size if mesh.HasField("shard_size") else None,
            replicate_size=mesh.replicate_size,
            tensor_parallel_size=mesh.tensor_parallel_size,
            global_blocks=message.training.batch.global_blocks,
            micro_blocks=message.training.batch.micro_blocks,
        )
        path = f"stages[{index}].{work}.training"
        yield from layout.check(sizes, layout.ModelSizes.from_folder(message.model.path), path)
        hosts = [host.gpu_count for host in job.cluster.aws.hosts.hosts if host.gpu_count]
        per_node = min([*hosts, *(BY_NAME[group.instance_types[0]].gpu_count for group in train)])
        if per_node % mesh.tensor_parallel_size:
            fits = ", ".join(str(size) for size in range(1, per_node + 1) if per_node % size == 0)
            yield Problem(
                f"{path}.parallelism.tensor_parallel_size",
                f"{mesh.tensor_parallel_size} does not fit into a node of {per_node} GPUs and would use the network; "
                f"use {fits}, or types with {_types_with_multiple(mesh.tensor_parallel_size)}",
            )


def _check_folders(job: job_pb2.JobConfig) -> Iterator[Problem]:
    folder = job.cluster.aws.file_system.folder.rstrip("/")
    if folder and not f"{job.storage.root}/".startswith(f"{folder}/"):
        yield Problem(
            "storage.root",
            f'"{job.storage.root}" is not below cluster.aws.file_system.folder, "{folder}", which the nodes see; move '
            "it there",
        )


def _names_with(gpu_count: int) -> str:
    return ", ".join(entry.name for entry in BY_NAME.values() if entry.gpu_count == gpu_count)


def _types_with_multiple(size: int) -> str:
    names = [entry.name for entry in BY_NAME.values() if entry.gpu_count % size == 0]
    return ", ".join(names) or "more GPUs, of which there are none"
