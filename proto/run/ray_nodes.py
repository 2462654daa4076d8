"""What Ray's nodes have left and which of them are leaving, which Ray says only in parts without promises.

The public functions sum over nodes, and `ray.util.state` asks the dashboard, which Finecut's Ray does not have. What
Ray offers instead is named here and nowhere else.
"""

import ray


def free() -> dict[str, dict[str, float]]:
    """Resources that nothing has taken, by id of living node."""
    return dict(ray._private.state.available_resources_per_node())


def draining() -> set[str]:
    """Ids of nodes that Ray takes out of service; it places nothing new on them."""
    return set(ray._private.state.state.get_draining_nodes())
