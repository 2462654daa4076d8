"""How many ranks a group has: as many as the job says, or fewer while nodes are missing (recovery.min_world_size).

A size is valid when it cuts the global batch evenly, so that the batch stays what it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from finecut.proto import job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, granted, node_roles, ray_nodes
from finecut.trainer import rank_counts, stage_kinds
from finecut.trainer.rl import engine_gpus, split

# A node that is only slow to come back is worth this wait before the group shrinks.
_PLACEMENT_WAIT_S = 20.0
_GROWTH_INTERVAL_S = 5.0


@dataclasses.dataclass(frozen=True)
class Layout:
    """Ranks of the group and what each is given: CPU cores reserved, whole GPUs, threads."""

    num_ranks: int
    num_cpus: float
    num_gpus: int
    num_threads: int
    # Nodes that ranks may be on (see node_roles.asked).
    role: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def bundle(self) -> dict[str, float]:
        """What one rank reserves in Ray."""
        return {"CPU": self.num_cpus} | ({"GPU": float(self.num_gpus)} if self.num_gpus else {}) | dict(self.role)


def wanted(job: job_pb2.JobConfig, stage: str) -> Layout:
    """One rank a GPU, or one on a machine without; cluster.local.rank_count decides otherwise.

    The stage's share of the machines is all that train, or what it was granted, or what its `resources` say. Where GPUs
    move between ranks and engines it is the number that they have now.
    """
    cluster, declared = ray.cluster_resources(), _stage(job, stage).resources
    total = node_roles.of_role(node_roles.TRAIN, cluster, _nodes())
    cpus, gpus = total.get("CPU", 1.0), int(total.get("GPU", 0))
    cpus = min(cpus, declared.cpu_count or cpus)
    gpus = min(gpus, granted.read(RunFolder.of(job).stage(stage)) or declared.gpu_count or gpus)
    if not cluster.get(node_roles.resource(node_roles.ROLLOUT)):  # else engines have nodes of their own
        gpus -= engine_gpus.reserved_for_engines(_stage(job, stage), gpus)
    num_ranks = max(1, gpus)
    if job.cluster.local.HasField("rank_count"):
        num_ranks = job.cluster.local.rank_count
    if gpus and num_ranks > gpus:
        raise UserError(f"cluster.local.rank_count: {num_ranks} ranks need as many GPUs, there are {gpus}; use {gpus}")
    found = _stage(job, stage)
    if engine_gpus.moves_ranks(found) and (kept := split.read(RunFolder.of(job).stage(stage))):
        num_ranks = kept.num_ranks
    gpus_each = found.evaluate.tensor_parallel_size or 1  # vLLM's, where the stage evaluates
    if gpus and gpus_each > gpus:
        raise UserError(
            f"stages.{stage}.evaluate.tensor_parallel_size: {gpus_each} GPUs asked for, there are {gpus}; use {gpus}"
        )
    if found.WhichOneof("work") in stage_kinds.SINGLE:
        num_ranks = 1
    # A core a rank, or what there is: more ranks than cores is slow but lets a laptop rehearse a larger job.
    share = min(1.0, math.floor(1000 * cpus / num_ranks) / 1000)
    return Layout(
        num_ranks,
        share,
        min(gpus, gpus_each),
        max(1, int(cpus) // num_ranks),
        node_roles.asked(node_roles.TRAIN, cluster),
    )


def valid_sizes(job: job_pb2.JobConfig, stage: str, largest: int) -> list[int]:
    """Sizes that the group may have, largest first; the first is `largest`."""
    found = _stage(job, stage)
    training = stage_kinds.training_of(found)
    smallest = training.recovery.min_world_size
    if found.WhichOneof("work") in stage_kinds.SINGLE or not smallest or training.parallelism.HasField("shard_size"):
        return [largest]
    return [
        largest,
        *(size for size in range(largest - 1, smallest - 1, -1) if rank_counts.is_valid(found, size)),
    ]


class GroupSizes:
    """The sizes of one stage's group, and places for it."""

    def __init__(self, job: job_pb2.JobConfig, stage: str) -> None:
        self._folder = RunFolder.of(job).stage(stage)
        self._granted = granted.read(self._folder)
        self._largest = wanted(job, stage)
        self._sizes = valid_sizes(job, stage, self._largest.num_ranks)
        self._looked_at = time.monotonic()

    @contextlib.contextmanager
    def placement(self, say: Callable[[str], None]) -> Iterator[tuple[Layout, PlacementGroup]]:
        """A place for the largest group that the cluster has room for. Waits where there is none; `say` tells why."""
        layout, placement = self._find(say)
        try:
            yield layout, placement
        finally:
            remove_placement_group(placement)

    def can_grow(self, layout: Layout) -> bool:
        """Whether the cluster has room for a larger valid group again. Looks now and then only."""
        if layout.num_ranks == self._sizes[0] or time.monotonic() - self._looked_at < _GROWTH_INTERVAL_S:
            return False
        self._looked_at = time.monotonic()
        more = next(size for size in reversed(self._sizes) if size > layout.num_ranks) - layout.num_ranks
        free = _free()
        return all(free.get(name, 0.0) >= more * amount for name, amount in layout.bundle.items())

    def is_granted_more(self) -> bool:
        """Whether the stage has been given more GPUs since, and they are free; its cores stay what they are."""
        more = granted.read(self._folder) - self._granted
        return more > 0 and _free().get("GPU", 0.0) >= more

    def _find(self, say: Callable[[str], None]) -> tuple[Layout, PlacementGroup]:
        told = False
        while True:
            for size in self._sizes:
                layout = dataclasses.replace(self._largest, num_ranks=size)
                placement = placement_group([layout.bundle] * size, strategy="PACK")
                if _is_placed(placement):
                    if size < self._sizes[0]:
                        say(f"there is room for {size} ranks of {self._sizes[0]}: the group goes on with {size}")
                    return layout, placement
                remove_placement_group(placement)
            if not told:
                told = True
                say(f"waiting for room for {self._sizes[-1]} ranks; recovery.min_world_size lets a group shrink")


def _free() -> Mapping[str, float]:
    """What nodes that train have free."""
    return node_roles.of_role(node_roles.TRAIN, ray.available_resources(), ray_nodes.free().values())


def nodes_of(placement: PlacementGroup) -> frozenset[str]:
    """Ids of the Ray nodes on which a placed group has its ranks."""
    return frozenset(placement_group_table(placement)["bundles_to_node_id"].values())


def _nodes() -> Iterator[Mapping[str, float]]:
    for node in ray.nodes():
        if node["Alive"]:
            yield node["Resources"]


def _is_placed(placement: PlacementGroup) -> bool:
    try:
        ray.get(placement.ready(), timeout=_PLACEMENT_WAIT_S)
        return True
    except GetTimeoutError:
        return False


def _stage(job: job_pb2.JobConfig, name: str) -> job_pb2.Stage:
    found = next((candidate for candidate in job.stages if candidate.name == name), None)
    if found is None or found.WhichOneof("work") not in stage_kinds.ALL:
        raise UserError(f"stage {name!r} is not one that the trainer runs")
    return found
