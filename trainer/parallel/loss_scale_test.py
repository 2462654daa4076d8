"""Dynamic loss scaling."""

import pytest

from finecut.trainer.parallel import loss_scale
from finecut.trainer.parallel.loss_scale import LossScaleError, LossScaler


def test_overflow_halves_the_scale_and_skips_the_step():
    scaler = LossScaler(enabled=True, scale=1024.0)
    assert scaler.update(finite=False, step=1) is False
    assert scaler.scale == 512.0
    assert scaler.update(finite=True, step=2) is True
    assert scaler.scale == 512.0


def test_scale_doubles_after_a_run_of_good_steps_and_only_then():
    scaler = LossScaler(enabled=True, scale=8.0, good_steps=loss_scale._GROWTH_INTERVAL - 2)
    scaler.update(finite=True, step=1)
    assert scaler.scale == 8.0
    scaler.update(finite=True, step=2)
    assert scaler.scale == 16.0
    assert scaler.good_steps == 0


def test_overflow_restarts_the_count_of_good_steps():
    scaler = LossScaler(enabled=True, good_steps=loss_scale._GROWTH_INTERVAL - 1)
    scaler.update(finite=False, step=1)
    scaler.update(finite=True, step=2)
    assert scaler.scale == loss_scale._INITIAL_SCALE / 2


def test_stops_when_every_step_overflows():
    scaler = LossScaler(enabled=True)
    with pytest.raises(LossScaleError, match=r"step 21: .* not finite 21 times in a row.*use precision BF16"):
        for step in range(1, 100):
            assert scaler.update(finite=False, step=step) is False


def test_without_scaling_a_non_finite_step_raises_with_its_number():
    scaler = LossScaler(enabled=False)
    assert scaler.scale == 1.0
    assert scaler.update(finite=True, step=6) is True
    with pytest.raises(FloatingPointError, match="step 7: the loss or a gradient is not finite"):
        scaler.update(finite=False, step=7)


def test_state_survives_a_checkpoint():
    before = LossScaler(enabled=True)
    before.update(finite=False, step=1)
    before.update(finite=True, step=2)
    after = LossScaler(enabled=True)
    after.load(before.state())
    assert after == before
