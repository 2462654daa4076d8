"""What Ray's nodes do, for those who buy and give back nodes: which are idle, and what work waits for room."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from finecut.launcher.node import drain
from finecut.proto.run import node_roles

_COUNTED = (
    "CPU",
    "GPU",
    *(node_roles.resource(role) for role in node_roles.ALL),
)
_ROUNDING = 1e-6


def idle_instances() -> frozenset[str]:
    """Instances of living nodes of which no core, no GPU and no role is taken."""
    import ray

    from finecut.proto.run import ray_nodes

    free = ray_nodes.free()
    return frozenset(
        node["Labels"][drain.INSTANCE_LABEL]
        for node in ray.nodes()
        if node["Alive"]
        and drain.INSTANCE_LABEL in (node.get("Labels") or {})
        and _is_idle(node["Resources"], free.get(node["NodeID"], {}))
    )


def waiting_nodes(role: str, cpus: int, gpus: int) -> int:
    """Nodes of so many cores and GPUs that work of a role needs and finds nowhere."""
    cores, devices = 0.0, 0.0
    for bundle in _waiting(role):
        cores += bundle.get("CPU", 0.0)
        devices += bundle.get("GPU", 0.0)
    parts = [cores / cpus if cpus else 0.0, devices / gpus if gpus else 0.0]
    return math.ceil(max(parts) - _ROUNDING)


def _is_idle(total: Mapping[str, float], free: Mapping[str, float]) -> bool:
    return all(free.get(name, 0.0) >= total[name] - _ROUNDING for name in _COUNTED if name in total)


def _waiting(role: str) -> Iterator[dict[str, float]]:
    """Bundles of tasks, actors and placement groups that ask for nodes of a role and have none."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    state = get_cluster_resource_state(ray._private.worker.global_worker.gcs_client)
    single = (request.request for request in state.pending_resource_requests for _ in range(request.count))
    gangs = (request for gang in state.pending_gang_resource_requests for request in _of_gang(gang))
    for request in (*single, *gangs):
        if node_roles.resource(role) in request.resources_bundle:
            yield dict(request.resources_bundle)


def _of_gang(gang: object) -> Iterator[object]:
    """A gang's bundles; Ray writes them in two forms."""
    selectors = getattr(gang, "bundle_selectors", ())
    if selectors:
        yield from selectors[0].resource_requests
    else:
        yield from getattr(gang, "requests", ())
