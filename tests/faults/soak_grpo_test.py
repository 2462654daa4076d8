"""What the soak of GRPO takes for a broken contract, and what not."""

from typing import Any

import pytest

from finecut.proto import service_pb2
from finecut.tests.faults import soak_grpo

STEPS = 3


def lines() -> list[dict[str, Any]]:
    """Of a run that went well; the prompts of a second epoch have the names of the first, at later places."""
    return [
        {
            "step": step,
            "record_id": f"tiny/{place % 5}#{place}",
            "sample_index": index,
            "weights": {str(step - 1): f"w{step}"},
        }
        for step in range(1, STEPS + 1)
        for place in range((step - 1) * soak_grpo.PROMPTS, step * soak_grpo.PROMPTS)
        for index in range(soak_grpo.GROUP)
    ]


def test_a_run_that_learnt_from_each_sample_once_is_right() -> None:
    assert soak_grpo.of_samples(lines(), STEPS) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found[:-1], "step 3 has not each answer to prompts 8 to 11 once"),
        (lambda found: [*found, found[-1]], "step 3 has not each answer"),
        (lambda found: [one for one in found if one["step"] != 2], "not 1 to 3 in order"),
        (
            lambda found: [one | {"weights": {"0": "w"}} for one in found],
            "step 2 has samples of another version than 1",
        ),
        (lambda found: [found[0] | {"weights": {"0": "other"}}, *found[1:]], "version 0 has 2 digests"),
        (lambda found: [one | {"weights": dict.fromkeys(one["weights"], "w")} for one in found], "the same weights"),
    ],
)
def test_what_is_lost_done_twice_or_of_other_weights_is_told(change: Any, said: str) -> None:
    assert said in "; ".join(soak_grpo.of_samples(change(lines()), STEPS))


def test_a_step_in_which_trainer_and_engine_differ_or_say_nothing_of_it_is_told() -> None:
    steps = [
        service_pb2.StepMetrics(step=n, values={"drift": drift})
        for n, drift in ((1, 1e-6), (2, 0.1), (3, float("nan")))
    ]
    found = soak_grpo.of_drift([service_pb2.JobEvent(step=step) for step in steps])
    assert [one.partition(":")[0] for one in found] == ["step 2", "step 3"]
    assert soak_grpo.of_drift([service_pb2.JobEvent(step=service_pb2.StepMetrics(step=4))])
