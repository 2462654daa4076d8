"""What nodes are for, as resources of Ray: a node offers its role, and work asks for the role of the nodes it wants.

A cluster whose nodes have no roles (one machine, hosts of one's own) takes any work anywhere. Ray is not imported here.
"""

from collections.abc import Iterable, Mapping

TRAIN, ROLLOUT, DATA, SERVE = ALL = "train", "rollout", "data", "serve"
_OFFERED = 1000.0
_ASKED = 0.001  # the least that Ray counts: a node has room for a million


def resource(role: str) -> str:
    """Name of a role's resource."""
    return f"finecut-{role}"


def offered(role: str) -> dict[str, float]:
    """What a node of a role has; "": it takes any work."""
    return {resource(role): _OFFERED} if role else {}


def asked(role: str, total: Mapping[str, float]) -> dict[str, float]:
    """What work of a role asks for beside cores and GPUs, where the cluster's resources are `total`.

    Nodes that train take what has no nodes of its own.
    """
    found = next((name for name in (resource(role), resource(TRAIN)) if total.get(name)), None)
    return {found: _ASKED} if found else {}


def fits(node: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    """Whether a node with these resources is of the role that `wanted`, from `asked`, names."""
    return all(node.get(name, 0.0) > 0 for name in wanted)


def room(num_gpus: int, wanted: Mapping[str, float], free: Iterable[Mapping[str, float]]) -> int:
    """How often so many GPUs fit one node of the role that `wanted` names. `free`: what each node has left."""
    return sum(int(node.get("GPU", 0)) // num_gpus for node in free if fits(node, wanted))


def of_role(role: str, total: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The part of the cluster's resources that is on nodes of a role. `nodes`: each node's own."""
    wanted = asked(role, total)
    if not wanted:
        return dict(total)
    summed: dict[str, float] = {}
    for node in nodes:
        if fits(node, wanted):
            for name, amount in node.items():
                summed[name] = summed.get(name, 0.0) + amount
    return summed
