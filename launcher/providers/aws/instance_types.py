"""Instance types that Finecut buys: what they hold, how their network is built, about what they cost.

Devices and network cards are those of EC2's instance type pages and its EFA page. Prices are estimates, near the
on-demand Linux prices of us-east-1 in 2025: nobody has compared them with AWS's price list, which alone decides, and
which differs by region and contract. Aws.prices overrides them.
"""

from __future__ import annotations

from dataclasses import dataclass

from finecut.proto import cluster_pb2


@dataclass(frozen=True)
class InstanceType:
    """One type. `usd_per_hour`: an estimate; None: it has no on-demand price (capacity blocks only).

    Attributes:
      efa_cards: Network cards with EFA; 0: the type has none.
      network_gbps: Largest bandwidth between two nodes, in Gbit/s.
    """

    name: str
    gpu: str
    gpu_count: int
    gpu_memory_gib: int
    cpu_count: int
    memory_gib: int
    efa_cards: int
    network_gbps: float
    usd_per_hour: float | None


_TABLE = (
    InstanceType("g4dn.xlarge", "T4", 1, 16, 4, 16, 0, 25, 0.526),
    InstanceType("g4dn.12xlarge", "T4", 4, 16, 48, 192, 1, 50, 3.912),
    InstanceType("g4dn.metal", "T4", 8, 16, 96, 384, 1, 100, 7.824),
    InstanceType("g5.xlarge", "A10G", 1, 24, 4, 16, 0, 10, 1.006),
    InstanceType("g5.2xlarge", "A10G", 1, 24, 8, 32, 0, 10, 1.212),
    InstanceType("g5.4xlarge", "A10G", 1, 24, 16, 64, 0, 25, 1.624),
    InstanceType("g5.12xlarge", "A10G", 4, 24, 48, 192, 1, 40, 5.672),
    InstanceType("g5.24xlarge", "A10G", 4, 24, 96, 384, 1, 50, 8.144),
    InstanceType("g5.48xlarge", "A10G", 8, 24, 192, 768, 1, 100, 16.288),
    InstanceType("g6.xlarge", "L4", 1, 24, 4, 16, 0, 10, 0.8048),
    InstanceType("g6.2xlarge", "L4", 1, 24, 8, 32, 0, 10, 0.9776),
    InstanceType("g6.12xlarge", "L4", 4, 24, 48, 192, 1, 40, 4.6016),
    InstanceType("g6.48xlarge", "L4", 8, 24, 192, 768, 1, 100, 13.3504),
    InstanceType("g6e.xlarge", "L40S", 1, 48, 4, 32, 0, 20, 1.861),
    InstanceType("g6e.2xlarge", "L40S", 1, 48, 8, 64, 0, 20, 2.24208),
    InstanceType("g6e.12xlarge", "L40S", 4, 48, 48, 384, 1, 100, 10.49264),
    InstanceType("g6e.48xlarge", "L40S", 8, 48, 192, 1536, 4, 400, 30.13118),
    InstanceType("p4d.24xlarge", "A100-40GB", 8, 40, 96, 1152, 4, 400, 21.957642),
    InstanceType("p4de.24xlarge", "A100-80GB", 8, 80, 96, 1152, 4, 400, 27.44705),
    InstanceType("p5.4xlarge", "H100", 1, 80, 16, 256, 1, 100, 6.88),
    InstanceType("p5.48xlarge", "H100", 8, 80, 192, 2048, 32, 3200, 55.04),
    InstanceType("p5e.48xlarge", "H200", 8, 141, 192, 2048, 32, 3200, None),
    InstanceType("p5en.48xlarge", "H200", 8, 141, 192, 2048, 16, 3200, 63.296),
    InstanceType("p6-b200.48xlarge", "B200", 8, 179, 192, 2048, 8, 3200, 113.9328),
    # Without GPUs, for data preparation.
    InstanceType("m7i.2xlarge", "", 0, 0, 8, 32, 0, 12.5, 0.4032),
    InstanceType("m7i.8xlarge", "", 0, 0, 32, 128, 0, 12.5, 1.6128),
    InstanceType("m7i.16xlarge", "", 0, 0, 64, 256, 0, 25, 3.2256),
    InstanceType("m7i.48xlarge", "", 0, 0, 192, 768, 0, 50, 9.6768),
    InstanceType("c7i.16xlarge", "", 0, 0, 64, 128, 0, 25, 2.856),
    InstanceType("r7i.16xlarge", "", 0, 0, 64, 512, 0, 25, 4.2336),
)

BY_NAME = {entry.name: entry for entry in _TABLE}


def price(name: str, aws: cluster_pb2.Aws) -> float | None:
    """US dollars an hour: the job's own figure, else the list's; None: neither has one."""
    own = next((entry.usd_per_hour for entry in aws.prices if entry.instance_type == name), None)
    if own is not None:
        return own
    return BY_NAME[name].usd_per_hour if name in BY_NAME else None
