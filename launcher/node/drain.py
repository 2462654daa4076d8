"""Tells Ray that a machine goes away: it gets no new work, and training saves and leaves it.

A program of its own, because Ray reads its environment when it is imported:
python -m finecut.launcher.node.drain HEAD INSTANCE SECONDS REASON KIND. Exit code 0: Ray agreed.
KIND is PREEMPTION, or IDLE_TERMINATION, to which Ray agrees only where the node has no work.
"""

import os
import subprocess
import sys
import time

INSTANCE_LABEL = "finecut-instance"
"""Label of a Ray node: the id of the machine that it runs on."""


def drain(
    head: str,
    instance: str,
    reason: str,
    seconds: float,
    environment: dict[str, str] | None = None,
    is_idle: bool = False,
) -> bool:
    """Drains the Ray node of an instance, which Ray ends after `seconds` at the latest. Whether Ray agreed."""
    kind = "IDLE_TERMINATION" if is_idle else "PREEMPTION"
    words = [head, instance, str(max(1, round(seconds))), reason, kind]
    command = [sys.executable, "-m", "finecut.launcher.node.drain", *words]
    try:
        return subprocess.run(command, env=environment or dict(os.environ), timeout=90).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def main(head: str, instance: str, seconds: str, reason: str, kind: str) -> int:
    """Finds the living node with the instance's label and drains it."""
    import ray
    from ray.core.generated import autoscaler_pb2, gcs_pb2

    client = ray._raylet.GcsClient(address=head)
    alive = gcs_pb2.GcsNodeInfo.GcsNodeState.Value("ALIVE")
    found = [
        info.node_id.hex()
        for info in client.get_all_node_info().values()
        if info.state == alive and dict(info.labels).get(INSTANCE_LABEL) == instance
    ]
    if not found:
        return 1
    why_drained = autoscaler_pb2.DrainNodeReason.Value(f"DRAIN_NODE_REASON_{kind}")
    deadline_ms = int((time.time() + float(seconds)) * 1000)
    accepted, why = client.drain_node(found[0], why_drained, reason, deadline_ms)
    if not accepted:
        print(f"Ray does not drain {instance}: {why}", file=sys.stderr)
    return 0 if accepted else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
