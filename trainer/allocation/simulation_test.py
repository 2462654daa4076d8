"""The policy over traces: better than half and half, hardly worse than the best split that nobody could know before."""

import dataclasses
from pathlib import Path

import pytest

from finecut.proto.config import UserError
from finecut.trainer.allocation.generate_traces import PARAMETERS, generate
from finecut.trainer.allocation.policy import AllocationPolicy, Bounds, PolicyConfig, StepTimes
from finecut.trainer.allocation.simulation import Step, Trace, dynamic, fixed, half

TRACES = Path(__file__).parent / "traces"


@pytest.mark.parametrize("name", PARAMETERS)
class TestTrace:
    def test_is_what_its_parameters_generate(self, name):
        assert Trace.read(TRACES / f"{name}.json") == generate(name)

    def test_dynamic_is_at_least_a_fifth_faster_than_half_and_half(self, name):
        trace = Trace.read(TRACES / f"{name}.json")
        bounds = Bounds(trace.num_gpus)
        total, _ = dynamic(trace, PolicyConfig(move_s=trace.move_s), bounds)
        assert fixed(trace, half(bounds)) / total >= 1.2

    @pytest.mark.parametrize("group", [1, 2, 4])
    def test_dynamic_is_never_much_worse_than_the_best_fixed_split(self, name, group):
        trace = Trace.read(TRACES / f"{name}.json")
        bounds = Bounds(trace.num_gpus, min_generating=group, min_training=group, group=group)
        total, _ = dynamic(trace, PolicyConfig(move_s=trace.move_s), bounds)
        assert min(fixed(trace, split) for split in bounds.splits()) / total >= 0.97


def test_a_balanced_trace_is_left_alone():
    steps = (Step(80.0, 80.0),) * 100
    trace = Trace("balanced", 8, 30.0, steps, {})
    total, splits = dynamic(trace, PolicyConfig(), Bounds(8))
    assert set(splits) == {4} and total == fixed(trace, 4)


def test_a_change_of_phase_is_followed():
    """First generating is the bottleneck, then training."""
    steps = (Step(900.0, 100.0),) * 100 + (Step(100.0, 900.0),) * 100
    trace = Trace("phases", 8, 30.0, steps, {})
    total, splits = dynamic(trace, PolicyConfig(), Bounds(8))
    assert (splits[50], splits[-1]) == (7, 1)
    assert min(fixed(trace, split) for split in Bounds(8).splits()) / total > 1.5


def test_a_move_that_does_not_pay_is_not_made():
    times = StepTimes(4, generating_s=10.0, training_s=8.0)
    eager = AllocationPolicy(Bounds(8), PolicyConfig(move_s=0.0), 4)
    patient = AllocationPolicy(Bounds(8), PolicyConfig(move_s=1000.0), 4)
    assert patient.after_step(times) == 4
    assert eager.after_step(dataclasses.replace(times, generating_s=20.0)) > 4


def test_bounds_hold_whatever_is_measured():
    bounds = Bounds(16, min_generating=2, min_training=4, group=2)
    assert bounds.splits() == [2, 4, 6, 8, 10, 12]
    for generating_s, training_s, expected in ((1e6, 1.0, 12), (1.0, 1e6, 2)):
        policy = AllocationPolicy(bounds, PolicyConfig(), 8)
        assert policy.after_step(StepTimes(8, generating_s, training_s)) == expected


class TestWhereRanksStay:
    BOUNDS = Bounds(6, min_generating=1, num_training=2)

    def settled(self, generating_work, training_s, split, steps=30):
        policy = AllocationPolicy(self.BOUNDS, PolicyConfig(move_s=1.0), split)
        for _ in range(steps):
            policy.after_step(StepTimes(policy.split, generating_work / policy.split, training_s))
        return policy.split

    def test_engines_come_until_ranks_wait_no_more(self):
        assert self.BOUNDS.splits() == [1, 2, 3, 4]
        assert self.settled(generating_work=29.0, training_s=10.0, split=1) == 3

    def test_engines_that_wait_for_ranks_are_given_back(self):
        assert self.settled(generating_work=9.0, training_s=10.0, split=4) == 1

    def test_engines_that_keep_up_stay(self):
        assert self.settled(generating_work=19.0, training_s=10.0, split=2) == 2


def test_a_broken_trace_is_a_user_error(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="not a trace"):
        Trace.read(tmp_path / "x.json")
