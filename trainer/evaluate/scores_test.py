"""Intervals and comparisons of metrics, against formulas and simulation."""

import numpy as np
import pytest

from finecut.proto.config import UserError
from finecut.trainer.evaluate.scores import Scores, wilson


def scores(values, weights=None, **fields) -> Scores:
    names = tuple(map(str, range(len(values))))
    return Scores("t", "m", names, np.array(values, float), weights, **fields)


def test_wilson_is_the_published_interval():
    """Newcombe (1998), table I: 81 of 263."""
    interval = wilson(81, 263)
    assert (interval.low, interval.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize("num_right", [0, 20])
def test_all_or_nothing_is_no_point(num_right):
    interval = wilson(num_right, 20)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1 and interval.high - interval.low > 0.1


def test_the_bootstrap_covers_the_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        interval = scores(generator.exponential(size=80)).interval(seed)
        covered += interval.low <= 1 <= interval.high
    assert 87 <= covered <= 100


def test_perplexity_weighs_documents_by_their_tokens():
    loss = scores([1.0, 2.0], np.array([3.0, 1.0]), is_exponential=True)
    assert loss.value == pytest.approx(np.exp(1.25))
    interval = loss.interval(0)
    assert interval.low == pytest.approx(np.exp(1.0)) and interval.high == pytest.approx(np.exp(2.0))


def test_a_small_but_sure_difference_is_found_only_where_examples_are_paired():
    values = np.random.default_rng(1).normal(size=60)
    ours, theirs = scores(values - 0.05), scores(values)
    assert ours.is_worse_than(theirs, 0) and not theirs.is_worse_than(ours, 0)
    elsewhere = Scores("t", "m", tuple(f"x{n}" for n in range(60)), values)
    assert not ours.is_worse_than(elsewhere, 0)


def test_of_a_loss_the_higher_is_worse():
    low, high = scores([1.0, 1.1, 0.9], higher_is_better=False), scores([2.0, 2.1, 1.9], higher_is_better=False)
    assert high.is_worse_than(low, 0) and not low.is_worse_than(high, 0)


def test_what_is_not_a_number_is_refused():
    with pytest.raises(UserError, match="task 't': m of an example is not a finite number"):
        scores([1.0, float("nan")])
