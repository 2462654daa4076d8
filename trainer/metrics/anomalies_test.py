"""Spikes stand out; a falling, a noisy and a settled loss do not."""

import json
import math
from pathlib import Path

import numpy as np

from finecut.trainer.metrics import anomalies
from finecut.trainer.metrics.anomalies import SpikeDetector

NOISY = 2.0 + 0.1 * np.random.default_rng(0).standard_normal(200)


def test_ordinary_losses_are_none() -> None:
    for losses in (NOISY, np.linspace(8, 1, 200), np.full(200, 0.7) + 1e-6 * np.arange(200)):
        detector = SpikeDetector(6.0)
        assert not any(detector.add(step, float(loss)) for step, loss in enumerate(losses, start=1))


def test_a_spike_is_found_and_does_not_hide_the_next() -> None:
    detector = SpikeDetector(6.0)
    for step, loss in enumerate(NOISY[:100], start=1):
        detector.add(step, float(loss))
    for step in (101, 102):
        spike = detector.add(step, 4.0)
        assert spike is not None and spike.step == step and abs(spike.mean - 2.0) < 0.1
    assert "4.0000 is a spike" in str(spike)
    assert detector.add(103, math.nan) is not None
    assert detector.add(104, 2.0) is None


def test_nothing_stands_out_of_too_few() -> None:
    detector = SpikeDetector(6.0)
    assert detector.add(1, 2.0) is None and detector.add(2, 50.0) is None


def test_the_batch_is_recorded_by_its_examples_ids(tmp_path: Path) -> None:
    path = anomalies.record(tmp_path, {"step": 3, "loss": 9.0}, ["00000000000000ff", "ffffffffffffffff"])
    assert json.loads(Path(path).read_text()) == {
        "step": 3,
        "loss": 9.0,
        "example_ids": ["00000000000000ff", "ffffffffffffffff"],
    }
    assert anomalies.record(tmp_path / "nowhere", {}, []).startswith("nowhere: ")
