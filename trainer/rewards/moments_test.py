"""Running moments against numpy over everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.trainer.rewards.moments import RunningMoments

BATCHES = st.lists(st.lists(st.floats(-1e6, 1e6), max_size=8), min_size=1, max_size=6)


@settings(deadline=None, derandomize=True)
@given(BATCHES)
def test_batches_give_what_all_values_together_give(batches: list[list[float]]) -> None:
    moments = RunningMoments()
    for batch in batches:
        moments.update(batch)
    values = np.array([value for batch in batches for value in batch])
    if len(values) and values.std() > 1e-3:
        for value in values[:3]:
            want = (value - values.mean()) / values.std()
            assert moments.normalized(float(value)) == pytest.approx(want, rel=1e-4, abs=1e-4)


def test_equal_values_and_no_values_give_0() -> None:
    moments = RunningMoments()
    assert moments.normalized(3.0) == 0
    moments.update([1e9 + 0.1] * 5)
    assert moments.normalized(1e9 + 0.1) == 0


def test_a_checkpoint_goes_on_exactly() -> None:
    whole, first, second = RunningMoments(), RunningMoments(), RunningMoments()
    whole.update([1.0, 2.0])
    first.update([1.0, 2.0])
    second.load_state_dict(first.state_dict())
    for moments in (whole, second):
        moments.update([5.0, -3.0, 0.5])
    assert second.state_dict() == whole.state_dict()
