"""Which devices a plan is for: those that --hardware names, or those of this machine."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess

from finecut.proto import job_pb2
from finecut.proto.config import UserError
from finecut.trainer.planning import gpus
from finecut.trainer.planning.gpus import Device

_FORM = re.compile(r"(?:(\d+)x)?([A-Za-z0-9-]+?)(?:/(\d+))?(?:@([0-9.]+))?")
_PER_HOST = 8  # GPUs of a host, where nothing says otherwise
_NVIDIA_SMI_S = 5


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Equal devices, one rank each. Example: 16 H100s on hosts of 8, together 110.08 dollars an hour."""

    device: Device
    count: int
    per_host: int
    usd_per_hour: float | None = None

    def __str__(self) -> str:
        if not self.device.is_gpu:
            return "this machine's CPU" if self.count == 1 else f"{self.count} ranks on this machine's CPU"
        return f"{self.count} x {self.device.name}"


def parse(text: str) -> Hardware:
    """From "8xH100", "16xH100/8" (8 a host) or "8xH100@55.04" (dollars an hour for all of them).

    Raises UserError for another form or an unknown kind.
    """
    found = _FORM.fullmatch(text)
    device = gpus.by_name(found[2]) if found else None
    if found is None or device is None or (found[1] and int(found[1]) < 1):
        known = ", ".join(gpu.name for gpu in gpus.GPUS)
        raise UserError(
            f"--hardware: {text!r} is not COUNTxKIND, such as 8xH100, 16xH100/8 (8 a host) or 8xH100@55.04 (dollars an"
            f" hour for all); kinds: {known}"
        )
    count = int(found[1] or 1)
    price = float(found[4]) if found[4] else None
    return Hardware(device, count, min(count, int(found[3] or _PER_HOST)), price)


def of_job(job: job_pb2.JobConfig) -> Hardware:
    """This machine's GPUs, or else its cores, shared by the job's ranks."""
    local = job.cluster.local
    names = _gpus_here()
    device = gpus.of_driver_name(names[0]) if names else None
    if device is not None:
        count = local.rank_count or len(names)
        return Hardware(device, count, count)
    ranks = local.rank_count or 1
    cores = local.cpu_count or len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(gpus.cpu(max(1, cores // ranks), memory // ranks), ranks, ranks)


def _gpus_here() -> list[str]:
    """Names of this machine's GPUs as the driver gives them; none where there is no driver."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
