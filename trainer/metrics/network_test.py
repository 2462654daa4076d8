"""Pairs of a tournament, probes between real ranks, and who is slow."""

from __future__ import annotations

import pytest

from finecut.trainer.metrics import network
from finecut.trainer.metrics.network import Link, Probe, Stragglers
from finecut.trainer.parallel import process_group
from finecut.trainer.recipes.testing import run_ranks


@pytest.mark.parametrize("world_size", [2, 3, 4, 7, 8])
def test_every_pair_meets_once_in_a_tournament(world_size: int) -> None:
    met = []
    for number in range(world_size - 1 + world_size % 2):
        found = network.partners(world_size, number)
        assert all(found[other] == one for one, other in found.items())
        met += [pair for pair in found.items() if pair[0] < pair[1]]
    assert len(met) == len(set(met)) == world_size * (world_size - 1) // 2


def test_one_rank_has_nobody_to_talk_to() -> None:
    assert network.partners(1, 0) == {}


def probe_as_rank() -> None:
    with process_group.connect() as devices:
        found = network.probe(devices, 0)
        assert set(found.links) == {(0, 1)} and len(found.compute_s) == 2
        link = found.links[0, 1]
        assert 0 < link.latency_s < 10 and link.bandwidth > 0 and found.all_reduce_bandwidth > 0
        names = found.scalars()
        assert names["network/latency_us_max"] == 1e6 * link.latency_s


def test_two_ranks_measure_each_other() -> None:
    run_ranks(2, probe_as_rank)


def probe_of(compute_s: list[float], links: dict[tuple[int, int], Link] | None = None) -> Probe:
    return Probe(links or {}, compute_s, 1e9, [0.0] * len(compute_s))


def test_a_rank_that_is_slow_twice_is_named() -> None:
    stragglers = Stragglers()
    assert stragglers.add(probe_of([1.0, 1.0, 1.9, 1.0])) == []
    (told,) = stragglers.add(probe_of([1.0, 1.0, 1.9, 1.0]))
    assert told.startswith("rank 2 is slow") and "1.9 times" in told
    assert stragglers.add(probe_of([1.0, 1.0, 1.0, 1.0])) == []


def test_a_slow_link_is_named() -> None:
    stragglers = Stragglers()
    fast, slow = Link(1e-5, 10e9), Link(1e-3, 1e9)
    stragglers.add(probe_of([1.0] * 4, {(0, 1): fast, (2, 3): fast}))
    (told,) = stragglers.add(probe_of([1.0] * 4, {(0, 2): fast, (1, 3): slow}))
    assert "between ranks 1 and 3 is slow" in told
