"""Which devices a plan is for: those that --hardware names, those of this machine, or those that would be bought."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
import subprocess
from collections.abc import Iterator

from finecut.launcher.providers.aws import instance_types
from finecut.proto import cluster_pb2, job_pb2
from finecut.proto.config import UserError
from finecut.trainer.planning import gpus
from finecut.trainer.planning.gpus import Device

_FORM = re.compile(r"(?:(\d+)x)?([A-Za-z0-9-]+?)(?:/(\d+))?(?:@([0-9.]+))?")
_PER_HOST = 8  # GPUs of a host, where nothing says otherwise
_NVIDIA_SMI_S = 5
_ROLLOUT, _TRAIN = cluster_pb2.NodeGroup.ROLLOUT, cluster_pb2.NodeGroup.TRAIN


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Equal devices, one rank each. Example: 16 H100s on hosts of 8, together 110.08 dollars an hour.

    Attributes:
      machines: What they are bought as, such as "2 x p5.48xlarge"; "": they are there.
      num_for_engines: GPUs of nodes that are for engines alone, beside `count`.
    """

    device: Device
    count: int
    per_host: int
    usd_per_hour: float | None = None
    machines: str = ""
    num_for_engines: int = 0

    def __str__(self) -> str:
        if not self.device.is_gpu:
            return "this machine's CPU" if self.count == 1 else f"{self.count} ranks on this machine's CPU"
        return f"{self.count} x {self.device.name}" + (f" ({self.machines})" if self.machines else "")


def parse(text: str) -> Hardware:
    """From "8xH100", "16xH100/8" (8 a host) or "8xH100@55.04" (dollars an hour for all of them).

    Raises UserError for another form or an unknown kind.
    """
    found = _FORM.fullmatch(text)
    device = gpus.by_name(found[2]) if found else None
    if found is None or device is None or (found[1] and int(found[1]) < 1):
        known = ", ".join(gpu.name for gpu in gpus.GPUS)
        raise UserError(
            f"hardware: {text!r} is not COUNTxKIND, such as 8xH100, 16xH100/8 (8 a host) or 8xH100@55.04 (dollars an"
            f" hour for all); kinds: {known}"
        )
    count = int(found[1] or 1)
    price = float(found[4]) if found[4] else None
    return Hardware(device, count, min(count, int(found[3] or _PER_HOST)), price)


def choices(job: job_pb2.JobConfig) -> list[Hardware]:
    """What a resolved job may get, what it prefers first. Empty: it shows only there (hosts that are not this one).

    On AWS a group gets the first of its types that has room.
    """
    match job.cluster.WhichOneof("provider"):
        case "aws":
            return [] if job.cluster.aws.HasField("hosts") else list(_bought(job.cluster))
        case "static":
            return []
    price = job.cluster.price_usd_per_hour if job.cluster.HasField("price_usd_per_hour") else None
    return [dataclasses.replace(_of_this_machine(job.cluster.local), usd_per_hour=price)]


def _bought(cluster: cluster_pb2.Cluster) -> Iterator[Hardware]:
    """One for each way in which the groups may be bought. The GPUs with the least memory stand for all that train.

    Groups for engines, data or serving alone train nothing, and cost all the same.
    """
    groups = cluster.node_groups
    for names in itertools.product(*(group.instance_types for group in groups)):
        known = [instance_types.BY_NAME[name] for name in names if name in instance_types.BY_NAME]
        if len(known) < len(groups):
            continue  # refused elsewhere
        bought = list(zip(groups, known, strict=True))
        train = [(group, kind) for group, kind in bought if group.role == _TRAIN and kind.gpu_count]
        devices = [device for _, kind in train if (device := gpus.by_name(kind.gpu))]
        if not devices:
            continue
        prices = [instance_types.price(kind.name, cluster.aws) for kind in known]
        total = sum(group.node_count * (price or 0.0) for group, price in zip(groups, prices, strict=True))
        yield Hardware(
            min(devices, key=lambda device: device.memory),
            sum(group.node_count * kind.gpu_count for group, kind in train),
            min(kind.gpu_count for _, kind in train),
            None if None in prices else total,
            " and ".join(f"{group.node_count} x {kind.name}" for group, kind in bought),
            sum(group.node_count * kind.gpu_count for group, kind in bought if group.role == _ROLLOUT),
        )


def _of_this_machine(local: cluster_pb2.Local) -> Hardware:
    """Its GPUs, with the memory that their driver reports, or else its cores, shared by the job's ranks."""
    devices = _gpus_here()
    if devices:
        count = local.rank_count or len(devices)
        return Hardware(min(devices, key=lambda device: device.memory), count, count)
    ranks = local.rank_count or 1
    cores = local.cpu_count or len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(gpus.cpu(max(1, cores // ranks), memory // ranks), ranks, ranks)


@functools.lru_cache(maxsize=1)
def _gpus_here() -> tuple[Device, ...]:
    """This machine's GPUs that programs may use; none where there is no driver."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    lines = [line.rsplit(",", 1) for line in done.stdout.splitlines() if line.strip()]
    found = [gpus.of_driver(name.strip(), int(mib) * 2**20) for name, mib in lines]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(found if visible is None else found[: len([part for part in visible.split(",") if part.strip()])])
