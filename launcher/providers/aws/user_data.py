"""What a node runs when it boots. It holds no secret: certificate and token are fetched by the node's role."""

from __future__ import annotations

import math
import shlex

from finecut.launcher.providers.aws import container
from finecut.launcher.providers.aws.instance_types import InstanceType
from finecut.launcher.providers.aws.names import Names
from finecut.proto import cluster_pb2

_TEMPLATE = """\
#!/bin/bash
# Joins the Finecut cluster {cluster}. Nothing here is secret.
set -euo pipefail
# The dead-man timer comes first: whatever fails below, this node ends, and with it its bill. The agent winds it up.
shutdown -P +{minutes} "finecut: nothing was heard from the launcher"
home=${{FINECUT_HOME:-/opt/finecut}}
mkdir -p {folder} "$home/code"
mountpoint -q {folder} || mount -t nfs4 -o nfsvers=4.1,hard,timeo=600,noresvport {source} {folder}
aws s3 cp --only-show-errors {bundle} "$home/bundle.tar.gz"
tar -xzf "$home/bundle.tar.gz" -C "$home/code"
{agent}"""
_AGENT = """\
export PYTHONPATH="$home/code${{PYTHONPATH:+:$PYTHONPATH}}"
exec {python} {arguments}
"""


def script(names: Names, aws: cluster_pb2.Aws, kind: InstanceType, role: cluster_pb2.NodeGroup.Role) -> str:
    """The script for one instance type in a group of one role."""
    minutes = dead_man_minutes(aws)
    arguments = [
        *("-m", "finecut.launcher.node.agent"),
        f"--cluster={names.cluster}",
        f"--region={aws.region}",
        f"--gpus={kind.gpu_count}",
        f"--efa_cards={kind.efa_cards}",
        f"--cpus={kind.cpu_count}",
        f"--role={cluster_pb2.NodeGroup.Role.Name(role).lower()}",
        f"--dead_man_minutes={minutes}",
    ]
    if aws.HasField("container_image"):
        agent = container.start(aws, arguments)
    else:
        agent = _AGENT.format(python=shlex.quote(aws.python), arguments=shlex.join(arguments))
    return _TEMPLATE.format(
        cluster=names.cluster,
        minutes=minutes,
        folder=shlex.quote(aws.file_system.folder),
        source=shlex.quote(aws.file_system.source),
        bundle=shlex.quote(aws.bundle),
        agent=agent,
    )


def dead_man_minutes(aws: cluster_pb2.Aws) -> int:
    """Whole minutes, as shutdown takes them."""
    return max(1, math.ceil(aws.dead_man.ToTimedelta().total_seconds() / 60))
