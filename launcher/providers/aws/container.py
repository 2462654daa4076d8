"""The container in which a node works, where the job names an image: pulled by the node's role, started by user data.

It shares the machine's network, memory and GPUs, because Ray, NCCL and the metadata service (hop limit 1) see the
machine as it is. What only the machine can do, to shut itself down, goes through a pipe.
"""

from __future__ import annotations

import re
import shlex

from finecut.proto import cluster_pb2

_ECR = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com/([^@:]+)(?::[^@]+)?@sha256:[0-9a-f]{64}")

_LOGIN = """\
aws ecr get-login-password --region {region} | docker login --username AWS --password-stdin {registry}
"""
_TEMPLATE = """\
mkdir -p "$home/host"
[ -p "$home/host/shutdown" ] || mkfifo "$home/host/shutdown"
cat > "$home/host/shutdown.sh" <<'END'
#!/bin/sh
IFS="	"; printf '%s\\n' "$*" > /run/finecut/shutdown
END
chmod +x "$home/host/shutdown.sh"
while true; do
  IFS=$'\\t' read -r -a words < "$home/host/shutdown" && shutdown "${{words[@]}}" || sleep 1
done &
{login}docker pull --quiet {image}
devices=()
for device in /dev/infiniband/uverbs*; do if [ -e "$device" ]; then devices+=(--device "$device"); fi; done
exec docker run --rm --init --gpus all --network host --ipc host --ulimit memlock=-1 --ulimit stack=67108864 \\
  --cap-add SYSLOG --device /dev/kmsg "${{devices[@]}}" \\
  --volume {folder}:{folder} --volume "$home/code:/opt/finecut/code:ro" --volume "$home/host:/run/finecut" \\
  --volume "$home/host/shutdown.sh:/usr/local/sbin/shutdown:ro" \\
  --env PYTHONPATH=/opt/finecut/code --entrypoint {python} {image} {arguments}
"""


def repository(image: str) -> tuple[str, str, str] | None:
    """Account, region and name of an image's repository in ECR; None: it is elsewhere."""
    found = _ECR.fullmatch(image)
    return (found[1], found[2], found[3]) if found else None


def start(aws: cluster_pb2.Aws, arguments: list[str]) -> str:
    """The end of a user data script: logs in where the image is in ECR, pulls, and becomes the container.

    `arguments` are Python's. `$home` holds the code.
    """
    own = repository(aws.container_image)
    login = _LOGIN.format(region=own[1], registry=aws.container_image.split("/")[0]) if own else ""
    return _TEMPLATE.format(
        login=login,
        image=shlex.quote(aws.container_image),
        folder=shlex.quote(aws.file_system.folder),
        python=shlex.quote(aws.python),
        arguments=shlex.join(arguments),
    )
