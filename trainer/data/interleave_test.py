"""Turns of sources: shares of every prefix to within one."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finecut.trainer.data.interleave import interleave


@settings(deadline=None, derandomize=True, max_examples=300)
@given(counts=st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any))
@example([1] * 12 + [500])
@example([1, 1, 1])
@example([97, 1, 0, 53])
def test_every_prefix_has_its_share_of_each_source_to_within_one(counts: list[int]) -> None:
    sources = interleave(counts)
    period = sum(counts)
    assert np.bincount(sources, minlength=len(counts)).tolist() == counts
    lengths = np.arange(1, period + 1)
    for source, count in enumerate(counts):
        seen = np.cumsum(sources == source)
        assert (seen >= lengths * count // period).all()
        assert (seen <= -(-lengths * count // period)).all()


@pytest.mark.parametrize(("counts", "expected"), [([2, 2], [0, 1, 0, 1]), ([3, 1], [0, 0, 1, 0]), ([5], [0] * 5)])
def test_sources_take_turns(counts: list[int], expected: list[int]) -> None:
    assert np.bincount(interleave(counts)).tolist() == counts
    assert len(set(interleave(counts)[:2])) == len(set(expected[:2]))
