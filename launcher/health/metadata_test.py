"""Notices as instance metadata gives them."""

from collections.abc import Iterator

import pytest

from finecut.launcher.health import metadata
from finecut.launcher.health.metadata import Departure, Metadata
from finecut.tests.aws.metadata_service import MetadataService


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataService]:
    made = MetadataService("i-1", "127.31.0.4")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", made.url)
    yield made
    made.close()


def test_tells_who_this_machine_is(service: MetadataService) -> None:
    assert Metadata().get("instance-id") == "i-1"
    assert Metadata().get("no/such") is None


def test_no_notice_then_rebalance_then_spot(service: MetadataService) -> None:
    client = Metadata()
    assert metadata.departure(client) is None
    service.recommend_rebalance()
    assert metadata.departure(client) == Departure("rebalance recommendation")
    service.give_spot_notice()
    assert metadata.departure(client) == Departure("spot interruption")


def test_ended_token_is_renewed(service: MetadataService) -> None:
    client = Metadata()
    assert client.get("instance-id") == "i-1"
    service.forget_token()
    service.give_spot_notice()
    assert metadata.departure(client) is None, "refused once"
    assert metadata.departure(client) == Departure("spot interruption")


def test_silent_service_takes_no_machine_away(service: MetadataService) -> None:
    client = Metadata()
    service.close()
    assert metadata.departure(client) is None
