"""Which failures are retried, how often, and after how long."""

import pytest

from finecut.proto.config import UserError
from finecut.trainer.recovery import Failure, FailureKind, GroupError, RestartPolicy

DEATH = Failure(FailureKind.DEATH, "rank 1 died")


def error(text: str) -> Failure:
    return Failure(FailureKind.ERROR, text)


def test_wait_doubles_up_to_five_minutes():
    policy = RestartPolicy(max_restarts=12, backoff_s=1.0)
    waits = [policy.wait_before_restart(DEATH, step) for step in range(12)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


def test_stops_when_restarts_are_used_up():
    policy = RestartPolicy(max_restarts=2, backoff_s=0.0)
    policy.wait_before_restart(DEATH, 1)
    policy.wait_before_restart(DEATH, 1)
    with pytest.raises(GroupError, match=r"rank 1 died .after step 7; 2 restarts are used up"):
        policy.wait_before_restart(DEATH, 7)


def test_user_error_is_raised_at_once():
    with pytest.raises(UserError, match=r"^no such folder$"):
        RestartPolicy(3, 0.0).wait_before_restart(Failure(FailureKind.USER_ERROR, "no such folder"), 0)


def test_same_error_at_the_same_step_is_not_retried_twice():
    policy = RestartPolicy(max_restarts=9, backoff_s=0.0)
    policy.wait_before_restart(error("loss is not finite"), 5)
    with pytest.raises(GroupError, match=r"same error came twice after step 5.*loss is not finite"):
        policy.wait_before_restart(error("loss is not finite"), 5)


def test_same_error_at_another_step_or_another_error_is_retried():
    policy = RestartPolicy(max_restarts=9, backoff_s=0.0)
    policy.wait_before_restart(error("disk is slow"), 5)
    policy.wait_before_restart(error("disk is slow"), 6)
    policy.wait_before_restart(error("disk is gone"), 6)
    assert policy.restarts == 3


def test_deaths_at_the_same_step_are_retried():
    policy = RestartPolicy(max_restarts=9, backoff_s=0.0)
    policy.wait_before_restart(DEATH, 5)
    policy.wait_before_restart(DEATH, 5)
    assert policy.restarts == 2
