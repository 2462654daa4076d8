"""Tokens a second."""

from finecut.trainer.data.batches import TokenCounts
from finecut.trainer.metrics.throughput import Throughput


def test_rates_are_of_the_steps_since_the_last_record():
    throughput = Throughput()
    throughput.add(TokenCounts(trained=10, useful=20, padded=40), seconds=1.0)
    throughput.add(TokenCounts(trained=30, useful=60, padded=80), seconds=3.0)
    assert throughput.take() == {
        "tokens_per_second": 20.0,
        "trained_tokens_per_second": 10.0,
        "padded_tokens_per_second": 30.0,
    }
    throughput.add(TokenCounts(trained=1, useful=2, padded=4), seconds=0.5)
    assert throughput.take()["tokens_per_second"] == 4.0
