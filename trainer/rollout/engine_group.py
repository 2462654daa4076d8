"""The engines of a fleet as Ray actors: starts them in their places, and calls them.

placement group   [engine 0: tp GPUs of one host] [engine 1: ...] ...      engines with GPUs of their own
seats             engine 0 on host a with GPUs 0 and 1, engine 1 ...       engines on the GPUs, or CPUs, of the trainer
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from finecut.proto.config import UserError
from finecut.proto.run import node_roles
from finecut.trainer.rollout.engine import Engine
from finecut.trainer.rollout.engine_config import EngineConfig, EngineDiedError

# Requests that one actor holds at the same time; beyond vLLM's own limit they wait there in its queue.
_MAX_CALLS = 8192
_PLACEMENT_TIMEOUT_S = 120


@dataclasses.dataclass(frozen=True)
class Share:
    """What one engine reserves in Ray."""

    cpus: float = 1.0
    # GPUs of the engine; a fraction where the trainer has the rest of the same GPU.
    gpus: float = 0.0


@dataclasses.dataclass(frozen=True)
class Seat:
    """Where an engine shares what the trainer has reserved: a node, by Ray's id, and its GPUs, as CUDA names them.

    No GPUs: on CPUs.
    """

    node_id: str
    gpus: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RayEngines:
    """The engines to send weights to (see weight_sync.Engines). Can be given to the trainer's processes."""

    handles: tuple[Any, ...]
    tensor_parallel_sizes: tuple[int, ...]

    def call(self, method: str, *arguments: Any) -> None:
        """Calls the method of every engine at once, and waits."""
        shared = [ray.put(argument) for argument in arguments]  # once, not once an engine
        get([getattr(handle, method).remote(*shared) for handle in self.handles])

    def call_each(self, method: str, arguments: Sequence[Any]) -> None:
        """As `call`, with one argument of its own for each engine."""
        pairs = zip(self.handles, arguments, strict=True)
        get([getattr(handle, method).remote(argument) for handle, argument in pairs])


def get(references: list[Any]) -> list[Any]:
    """`ray.get`, raising what the actor raised rather than Ray's account of it; EngineDiedError where it is gone."""
    try:
        return list(ray.get(references))
    except RayActorError:
        raise EngineDiedError("a rollout engine's process crashed or was killed while it was called") from None
    except RayTaskError as error:
        raise plain_error(error) from None


def plain_error(error: RayError) -> Exception:
    """The exception of the actor's code where it is meant for users, else Ray's."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, UserError) else error


def ask_for_place(share: Share) -> PlacementGroup:
    """A place for one engine, within one host, as soon as the cluster has one."""
    role = node_roles.asked(node_roles.ROLLOUT, ray.cluster_resources())
    return placement_group([{"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {}) | role])


def reserve(num_engines: int, share: Share, tensor_parallel_size: int) -> list[PlacementGroup]:
    """A place for each engine, within one host. Raises UserError when the cluster has not as much."""
    _check_cluster(num_engines, share, tensor_parallel_size)
    places = [ask_for_place(share) for _ in range(num_engines)]
    deadline = time.monotonic() + _PLACEMENT_TIMEOUT_S
    if not all(place.wait(max(0.0, deadline - time.monotonic())) for place in places):
        for place in places:
            remove_placement_group(place)
        raise UserError(
            f"rollout.engine_count: the cluster has room for {num_engines} engines, but it was taken by others for "
            f"{_PLACEMENT_TIMEOUT_S} s; stop what runs there, or use fewer engines"
        )
    return places


def _check_cluster(num_engines: int, share: Share, tensor_parallel_size: int) -> None:
    role = node_roles.asked(node_roles.ROLLOUT, ray.cluster_resources())
    alive = (node["Resources"] for node in ray.nodes() if node["Alive"])
    nodes = [node for node in alive if node_roles.fits(node, role)]
    for kind, each in (("GPU", share.gpus), ("CPU", share.cpus)):
        fitting = sum(int(node.get(kind, 0) / each + 1e-6) for node in nodes) if each else num_engines
        if fitting < num_engines:
            largest = max((node.get(kind, 0) for node in nodes), default=0)
            raise UserError(
                f"rollout.engine_count: {num_engines} engines of {each:g} {kind}s (rollout.tensor_parallel_size: "
                f"{tensor_parallel_size}) do not fit: the cluster has room for {fitting}, its largest host has "
                f"{largest:g} {kind}s; use fewer or smaller engines"
            )


def start(config: EngineConfig, policy_version: int, place: Seat | tuple[PlacementGroup, int, Share]) -> Any:
    """Starts the actor of one engine in its seat, or bundle of a placement group. Nobody restarts it but the fleet."""
    if isinstance(place, Seat):
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 0}
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
        config = dataclasses.replace(config, visible_gpus=place.gpus)
    else:
        group, bundle, share = place
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus}
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    options |= {"max_restarts": 0, "max_concurrency": _MAX_CALLS}
    return ray.remote(**options)(Engine).remote(config, policy_version)
