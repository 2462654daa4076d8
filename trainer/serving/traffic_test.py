"""Shares of traffic and when a candidate has failed."""

import pytest

from finecut.trainer.serving.traffic import Traffic


@pytest.fixture
def traffic() -> Traffic:
    traffic = Traffic()
    traffic.stable = "old"
    traffic.begin("new", max_error_fraction=0.1)
    return traffic


@pytest.mark.parametrize("share", [1, 5, 33, 50, 100])
def test_shares_are_exact(traffic: Traffic, share: int) -> None:
    traffic.share_percent = share
    firsts = [traffic.order()[0] for _ in range(300)]
    assert firsts.count("new") == 3 * share


def test_each_stands_in_for_the_other_once_the_candidate_has_a_share(traffic: Traffic) -> None:
    assert traffic.order() == ["old"]
    traffic.share_percent = 50
    assert [sorted(traffic.order()) for _ in range(4)] == [["new", "old"]] * 4


def test_failures_count_from_ten_requests_on(traffic: Traffic) -> None:
    for _ in range(8):
        traffic.record("new", is_failure=False)
    traffic.record("new", is_failure=True)
    assert traffic.failure is None
    traffic.record("new", is_failure=True)
    assert traffic.failure == "2 of its 10 requests failed, 20.0%, and max_error_fraction allows 10.0%"
    traffic.record("old", is_failure=True)
    assert traffic.counts.requests == 10
    traffic.roll_back()
    assert traffic.failure is None and traffic.order() == ["old"]


def test_promotion_names_what_is_replaced(traffic: Traffic) -> None:
    assert traffic.promote() == "old"
    assert (traffic.stable, traffic.candidate, traffic.order()) == ("new", None, ["new"])
