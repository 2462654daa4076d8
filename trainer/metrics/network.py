"""Latency and bandwidth between ranks, and each rank's own speed: small probes, taken now and then.

Rounds of a tournament: in each, every rank talks to one other; a probe plays one round, so that world_size - 1 probes
cover all pairs at a cost that does not grow. Pairs talk over gloo, which is the hosts' network (and memory within one);
what NCCL makes of the GPUs' links is told by the time of a collective over all ranks.
"""

from __future__ import annotations

import dataclasses
import statistics
import time

import torch
import torch.distributed as dist

from finecut.trainer.parallel.process_group import Devices

_PINGS = 5
_BYTES = 1 << 20  # long enough that bandwidth shows, short enough to be nothing beside a step
_REDUCED_BYTES = 4 << 20
_MATRIX = {"cuda": 4_096, "cpu": 256}
_REPEATS = 3
# A rank this much slower than the median, in two probes in a row, is named.
_SLOW = 1.3
_SLOW_LINK = 2.0


@dataclasses.dataclass(frozen=True)
class Link:
    """Between two ranks: a small message's time one way, and bytes a second."""

    latency_s: float
    bandwidth: float


@dataclasses.dataclass(frozen=True)
class Probe:
    """What one probe found; every rank has the same."""

    links: dict[tuple[int, int], Link]
    compute_s: list[float]  # of each rank, for the same matrix product
    all_reduce_bandwidth: float  # bytes a second of bus bandwidth; 0: one rank
    host_to_device: list[float]  # bytes a second of each rank; 0 on CPUs

    def scalars(self) -> dict[str, float]:
        """Extremes and medians."""
        middle = statistics.median(self.compute_s)
        found = {"probe/compute_slowest_over_median": max(self.compute_s) / middle}
        if self.host_to_device[0]:
            found["probe/host_to_device_gbytes_per_second"] = min(self.host_to_device) / 1e9
        if self.links:
            latencies = [link.latency_s for link in self.links.values()]
            found |= {
                "network/latency_us_median": 1e6 * statistics.median(latencies),
                "network/latency_us_max": 1e6 * max(latencies),
                "network/bandwidth_gbytes_per_second_min": min(link.bandwidth for link in self.links.values()) / 1e9,
                "network/all_reduce_gbytes_per_second": self.all_reduce_bandwidth / 1e9,
            }
        return found


def partners(world_size: int, number: int) -> dict[int, int]:
    """Who talks to whom in a round (circle method); with an odd number of ranks one rests."""
    size = world_size + world_size % 2
    if size < 2:
        return {}
    turn = number % (size - 1)
    circle = [0, *((place + turn) % (size - 1) + 1 for place in range(size - 1))]
    found = {}
    for one, other in zip(circle[: size // 2], reversed(circle[size // 2 :]), strict=True):
        if max(one, other) < world_size:
            found[one], found[other] = other, one
    return found


def probe(devices: Devices, number: int) -> Probe:
    """Plays round `number`. Collective."""
    compute_s, copied = _compute_seconds(devices.device), _host_to_device(devices.device)
    partner = partners(devices.world_size, number).get(devices.rank)
    link = _link(devices.rank, partner) if partner is not None else None
    reduced = _all_reduce_bandwidth(devices)
    rows = [0.0] * (5 * devices.world_size)
    own = [compute_s, copied, link.latency_s if link else 0.0, link.bandwidth if link else 0.0, reduced]
    rows[5 * devices.rank : 5 * devices.rank + 5] = own
    gathered = devices.sum(*rows)
    by_rank = [gathered[5 * rank : 5 * rank + 5] for rank in range(devices.world_size)]
    pairs = [(one, other) for one, other in partners(devices.world_size, number).items() if one < other]
    return Probe(
        links={(a, b): Link(max(by_rank[a][2], by_rank[b][2]), min(by_rank[a][3], by_rank[b][3])) for a, b in pairs},
        compute_s=[row[0] for row in by_rank],
        all_reduce_bandwidth=min(row[4] for row in by_rank),
        host_to_device=[row[1] for row in by_rank],
    )


class Stragglers:
    """Names ranks and links that are slower than the others in two probes in a row."""

    def __init__(self) -> None:
        self._slow: set[int] = set()
        self._links: dict[tuple[int, int], Link] = {}

    def add(self, found: Probe) -> list[str]:
        """Takes a probe; returns what to say."""
        middle = statistics.median(found.compute_s)
        slow = {rank for rank, seconds in enumerate(found.compute_s) if seconds > _SLOW * middle}
        told = [
            f"rank {rank} is slow: the same matrix product takes it {found.compute_s[rank] / middle:.1f} times as long"
            " as the median rank; look at its clocks, temperature and other programs on its host"
            for rank in sorted(slow & self._slow)
        ]
        self._slow = slow
        known = [link.bandwidth for link in self._links.values()]
        for pair, link in found.links.items():
            is_slow = len(known) >= 2 and _SLOW_LINK * link.bandwidth < statistics.median(known)
            if is_slow:
                told.append(
                    f"the network between ranks {pair[0]} and {pair[1]} is slow: {link.bandwidth / 1e9:.2f} GB/s, the"
                    f" median of {len(known)} pairs is {statistics.median(known) / 1e9:.2f}"
                )
        self._links |= found.links
        return told


def _compute_seconds(device: torch.device) -> float:
    """Fastest of a few matrix products of the same size, alone, without other ranks."""
    size = _MATRIX[device.type]
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    seconds = []
    for _ in range(_REPEATS):
        _wait(device)
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _host_to_device(device: torch.device) -> float:
    if device.type != "cuda":
        return 0.0
    host = torch.empty(16 * _BYTES, dtype=torch.uint8, pin_memory=True)
    _wait(device)
    started = time.perf_counter()
    host.to(device, non_blocking=True)
    _wait(device)
    return host.numel() / (time.perf_counter() - started)


def _link(rank: int, partner: int) -> Link:
    """Both send and receive in turn, the lower rank first."""
    small, large = torch.zeros(1), torch.zeros(_BYTES, dtype=torch.uint8)
    _exchange(small, rank, partner)  # connects
    started = time.perf_counter()
    for _ in range(_PINGS):
        _exchange(small, rank, partner)
    latency_s = (time.perf_counter() - started) / (2 * _PINGS)
    started = time.perf_counter()
    _exchange(large, rank, partner)
    return Link(latency_s, 2 * _BYTES / (time.perf_counter() - started))


def _exchange(buffer: torch.Tensor, rank: int, partner: int) -> None:
    if rank < partner:
        dist.send(buffer, partner)
        dist.recv(buffer, partner)
    else:
        dist.recv(buffer, partner)
        dist.send(buffer, partner)


def _all_reduce_bandwidth(devices: Devices) -> float:
    """Bus bandwidth, as nccl-tests count it, over the device's own links. Collective."""
    if devices.world_size == 1:
        return 0.0
    buffer = torch.zeros(_REDUCED_BYTES, dtype=torch.uint8, device=devices.device)
    dist.all_reduce(buffer)
    _wait(devices.device)
    started = time.perf_counter()
    dist.all_reduce(buffer)
    _wait(devices.device)
    seconds = time.perf_counter() - started
    return 2 * (devices.world_size - 1) / devices.world_size * _REDUCED_BYTES / seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
