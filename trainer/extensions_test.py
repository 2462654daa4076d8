"""What a factory of the user's returns is checked before the work starts."""

import sys
import types
from typing import Any

import pytest

from finecut.proto import extension_pb2
from finecut.proto.config import UserError
from finecut.trainer import extensions
from finecut.trainer.config import ScheduleConfig, ScheduleKind
from finecut.trainer.recipes.objective import CrossEntropy
from finecut.trainer.recipes.schedule import learning_rate_at


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("users_module")
    monkeypatch.setitem(sys.modules, "users_module", module)
    return module


def code(name: str) -> extension_pb2.UserCode:
    return extension_pb2.UserCode(path=f"users_module:{name}")


def test_a_loss_needs_all_its_methods(users: Any) -> None:
    users.loss, users.number = CrossEntropy, lambda: 3
    assert isinstance(extensions.objective(code("loss")), CrossEntropy)
    with pytest.raises(
        UserError, match=r"sft.loss: 'users_module:number' returned a int, which lacks num_units, losses"
    ):
        extensions.objective(code("number"))


def test_a_recipe_gets_the_shared_settings(users: Any) -> None:
    seen = []
    users.recipe = lambda config: seen.append(config)
    shared: Any = object()
    with pytest.raises(UserError, match="returned a NoneType, which lacks config, data_kind"):
        extensions.recipe(code("recipe"), shared)
    assert seen == [shared]


def rate(users: Any, function: Any, step: int = 3) -> float:
    users.schedule = lambda: function
    schedule = ScheduleConfig(ScheduleKind.COSINE, None, 0.1, extensions.schedule(code("schedule")))
    return learning_rate_at(step, 10, 2e-3, schedule)


def test_a_schedule_gives_multiples_of_the_peak(users: Any) -> None:
    assert rate(users, lambda step, total: step / total) == pytest.approx(2e-3 * 0.3)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_schedule_that_gives_no_rate_is_refused(users: Any, value: float) -> None:
    with pytest.raises(UserError, match=f"gave {value} at step 3; it must be 0 or more"):
        rate(users, lambda step, total: value)


def test_a_schedule_that_fails_is_told_with_its_place(users: Any) -> None:
    with pytest.raises(UserError, match=r"failed at step 3: .*extensions_test.py:\d+: ZeroDivisionError"):
        rate(users, lambda step, total: 1 / 0)
    with pytest.raises(UserError, match="returned a int, which lacks __call__"):
        rate(users, 3)
