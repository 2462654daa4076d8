"""The shapes of the learning rate."""

import itertools

import pytest

from finecut.trainer.config import ScheduleConfig, ScheduleKind
from finecut.trainer.recipes.schedule import learning_rate_at


def rates(kind: ScheduleKind, total: int, warmup: int | None = None, final: float = 0.1) -> list[float]:
    schedule = ScheduleConfig(kind, warmup, final)
    return [learning_rate_at(step, total, 1.0, schedule) for step in range(1, total + 1)]


def test_warmup_is_linear_and_ends_at_the_peak():
    assert rates(ScheduleKind.CONSTANT, 8, warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", [ScheduleKind.COSINE, ScheduleKind.LINEAR])
def test_decays_to_the_final_fraction_at_the_last_step(kind):
    values = rates(kind, 100, warmup=10)
    assert values[9] == pytest.approx(1.0)
    assert values[-1] == pytest.approx(0.1)
    assert all(after < before for before, after in itertools.pairwise(values[9:]))


def test_cosine_is_half_way_between_peak_and_final_in_the_middle():
    assert rates(ScheduleKind.COSINE, 20, warmup=0, final=0.2)[9] == pytest.approx(0.6)


def test_unset_warmup_is_three_percent_of_all_steps():
    assert rates(ScheduleKind.CONSTANT, 100)[:4] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


def test_one_step_run_trains_at_the_peak():
    assert rates(ScheduleKind.COSINE, 1) == [1.0]
