"""Recording takes its share of the time, whatever a step and a record take; short runs are recorded whole."""

import pytest

from finecut.trainer.metrics.budget import Budget


@pytest.mark.parametrize("step_s", [0.005, 0.05, 0.5])
def test_long_runs_spend_half_a_hundredth_of_their_time(step_s: float) -> None:
    clock = [0.0]
    budget = Budget(1.0, lambda: clock[0])
    cost_s, num_records, due = 0.002, 0, 1
    for step in range(1, 200_001):
        clock[0] += step_s
        if step >= due:
            clock[0] += cost_s
            budget.spend(cost_s)
            num_records += 1
            due = step + budget.steps_to_wait(step_s)
    assert num_records * cost_s <= 1.0 + 0.00505 * clock[0]
    assert num_records == 200_000 or num_records * cost_s >= 0.0045 * clock[0]
    assert (num_records == 200_000) == (step_s > 0.2)


def test_the_first_records_are_all_made() -> None:
    budget = Budget(1.0, lambda: 0.0)
    for _ in range(400):
        assert budget.steps_to_wait(0.001) == 1
        budget.spend(0.0025)
    budget.spend(0.0025)
    assert budget.steps_to_wait(0.001) > 100
