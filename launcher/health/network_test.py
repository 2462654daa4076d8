"""The pairwise check on loopback."""

from collections.abc import Iterator

import pytest

from finecut.launcher.health import network
from finecut.launcher.health.network import Limits, Responder


@pytest.fixture
def peer() -> Iterator[Responder]:
    responder = Responder("127.0.0.1", "secret", port=0)
    yield responder
    responder.close()


def test_measures_what_loopback_does(peer: Responder) -> None:
    found = network.measure("127.0.0.1", "secret", peer.port)
    assert 0 < found.latency_us < 1e6 and found.bandwidth_gbps > 0.01


def test_expectations_that_are_met_or_absent_are_silent(peer: Responder) -> None:
    met = Limits(min_bandwidth_gbps=0.001, max_latency_us=1e7)
    assert list(network.complaints(["127.0.0.1"], "secret", met, peer.port)) == []
    assert list(network.complaints(["127.0.0.1"], "secret", Limits(), peer.port)) == []


def test_slow_and_far_peers_are_named_with_both_numbers(peer: Responder) -> None:
    too_much = Limits(min_bandwidth_gbps=1e6, max_latency_us=0.001)
    slow, far = network.complaints(["127.0.0.1"], "secret", too_much, peer.port)
    assert "Gbit/s to 127.0.0.1, expected at least 1e+06" in slow
    assert "us to 127.0.0.1 and back, expected at most 0.001" in far


def test_stranger_is_refused(peer: Responder) -> None:
    with pytest.raises(OSError):
        network.measure("127.0.0.1", "guessed", peer.port)


def test_silent_peer_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_PEER_S", 0.0)
    responder = Responder("127.0.0.1", "secret", port=0)
    responder.close()
    limits = Limits(min_bandwidth_gbps=0.001)
    assert list(network.complaints(["127.0.0.1"], "secret", limits, responder.port)) == []
