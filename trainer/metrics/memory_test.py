"""Memory of a process, and spikes with their likely cause."""

import dataclasses

import pytest
import torch

from finecut.trainer.metrics.memory import Circumstances, MemoryAlarm, MemoryMeter

USUAL = Circumstances(trained_tokens=1_000, num_documents=20, reserved_gib=12.0, num_retries=0, is_detailed=False)


def test_resident_memory_grows_by_what_is_held_and_the_peak_stays() -> None:
    meter = MemoryMeter(torch.device("cpu"))
    meter.begin()
    before = meter.usage()
    held = torch.ones(64 * 2**20)  # 0.25 GiB of FP32, every page written
    during = meter.usage()
    assert before.allocated + 0.2 < during.allocated < before.allocated + 0.5
    assert during.peak >= during.allocated - 0.01
    del held


def alarm() -> MemoryAlarm:
    alarm = MemoryAlarm("train")
    for peak in (9.0, 10.0, 9.5, 10.2, 10.0, 10.1):
        assert alarm.add([8.0, peak], USUAL) is None
    return alarm


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"trained_tokens": 3_000}, "loss.chunk_tokens"),
        ({"num_documents": 90}, "90 documents"),
        ({"num_retries": 2}, "expandable_segments"),
        ({"is_detailed": True}, "detail_every_steps"),
        ({}, "kept from step to step"),
    ],
)
def test_a_spike_names_the_rank_and_the_likely_cause(changes: dict[str, int], cause: str) -> None:
    told = alarm().add([8.0, 13.0], dataclasses.replace(USUAL, **changes))
    assert told is not None and "rank 1 rose to 13.00 GiB in train, 10.20 at most before" in told and cause in told


def test_growth_within_bounds_and_a_peak_seen_before_are_no_spikes() -> None:
    watched = alarm()
    assert watched.add([8.0, 11.0], USUAL) is None
    assert watched.add([8.0, 14.0], USUAL) is not None
    assert watched.add([8.0, 14.0], USUAL) is None
