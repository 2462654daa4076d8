"""How many nodes each group is to have: the job's figure, less groups that no coming stage needs, scaled by their use.

round: stages to come -> roles that they need -> what the nodes of a group do -> Scaler -> buy, or drain idle nodes
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from finecut.launcher import runs
from finecut.launcher.providers.aws.instance_types import BY_NAME
from finecut.launcher.reconcile import store as states
from finecut.launcher.reconcile.reconciler import Reconciler
from finecut.launcher.reconcile.scaling import Bounds, Scaler, Use
from finecut.launcher.reconcile.store import Store
from finecut.proto import cluster_pb2, delivery_pb2, job_pb2, rollout_pb2
from finecut.proto.config import reinforcement

IDLE = "idle"
_Role = cluster_pb2.NodeGroup.Role
_IDLE_S = 600.0  # of runs that an earlier version has stored without it
_DRAIN_S = 60.0


class Used(Protocol):
    """The part of Membership that is used here."""

    def idle(self) -> frozenset[str]: ...

    def waiting(self, role: str, cpus: int, gpus: int) -> int: ...

    def drain(self, instance: str, reason: str, seconds: float, is_idle: bool = False) -> bool: ...


def first_counts(job: job_pb2.JobConfig) -> dict[str, int]:
    """Nodes of each group at the start of a launcher; none where no coming stage needs the group."""
    needed = needed_roles(job)
    return {group.name: group.node_count if group.role in needed else 0 for group in job.cluster.node_groups}


def needed_roles(job: job_pb2.JobConfig) -> set[_Role]:
    """Roles that stages without an artifact need, as far as groups have them; all, where the job has no stages."""
    there = {group.role for group in job.cluster.node_groups}
    if not job.stages:
        return there
    asked: set[_Role] = set()
    for stage in job.stages:
        if runs.finished_artifact(job, stage.name) is None:
            asked |= _roles_of(stage)
    return {role if role in there else _Role.TRAIN for role in asked}


def bounds(group: cluster_pb2.NodeGroup) -> Bounds:
    """Fewest and most nodes."""
    if group.HasField("scaling"):
        return Bounds(group.scaling.min_nodes, group.scaling.max_nodes)
    return Bounds(group.node_count, group.node_count)


class Sizing:
    """One cluster's. `round` is called every few seconds, before the reconciler buys and ends."""

    def __init__(
        self,
        job: job_pb2.JobConfig,
        store: Store,
        reconciler: Reconciler,
        membership: Used,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job
        self._store = store
        self._reconciler = reconciler
        self._membership = membership
        self._say = say
        self._clock = clock
        idle_s = job.cluster.idle_release.ToTimedelta().total_seconds() or _IDLE_S
        counts = first_counts(job)
        self._scalers = {
            group.name: Scaler(bounds(group), counts[group.name], idle_s) for group in job.cluster.node_groups
        }

    def round(self) -> None:
        """One look at every group that may change."""
        needed = needed_roles(self._job)
        groups = [g for g in self._job.cluster.node_groups if g.HasField("scaling") or g.role not in needed]
        idle = self._membership.idle() if groups else frozenset()
        for group in groups:
            scaler = self._scalers[group.name]
            before = scaler.count
            target = scaler.after_look(self._use(group, idle, group.role in needed), self._clock())
            for instance in target.spare:
                self._give_back(instance, scaler)
            if scaler.count > before:
                self._say(f"{group.name}: work waits for room; {scaler.count} nodes are meant, not {before}")
            self._reconciler.aim(group.name, scaler.count)

    def _use(self, group: cluster_pb2.NodeGroup, idle: frozenset[str], is_needed: bool) -> Use:
        nodes = {node.instance for node in self._store.nodes(states.ADMITTED) if node.group == group.name}
        kind = BY_NAME[group.instance_types[0]]
        waiting = 0
        if is_needed and group.HasField("scaling"):
            waiting = self._membership.waiting(_Role.Name(group.role).lower(), kind.cpu_count, kind.gpu_count)
        return Use(len(nodes - idle), frozenset(nodes & idle), waiting, is_needed)

    def _give_back(self, instance: str, scaler: Scaler) -> None:
        """Ray agrees only where the node is idle still; then it takes no more work."""
        if not self._membership.drain(instance, IDLE, _DRAIN_S, is_idle=True):
            scaler.kept(instance)
            return
        self._say(f"node {instance} has been idle: it is given back")
        self._store.move(instance, states.NOTICED, IDLE)


def _roles_of(stage: job_pb2.Stage) -> set[_Role]:
    work = stage.WhichOneof("work") or ""
    if work == "data_prep":
        return {_Role.DATA}
    if work == "deploy":
        return {_Role.SERVE} if stage.deploy.placement == delivery_pb2.Deploy.CLUSTER else set()
    if reinforcement.samples_itself(stage) and getattr(stage, work).rollout.placement == rollout_pb2.Rollout.SPLIT:
        return {_Role.TRAIN, _Role.ROLLOUT}
    return {_Role.TRAIN}
