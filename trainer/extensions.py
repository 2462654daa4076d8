"""What training takes from a user's code, and what that must look like. See docs/extending.md.

A job names a factory ("package.module:name"), which is called once on every rank, when the stage starts. The protocols
of what they return: `Schedule` here, `Objective` in recipes/objective.py, `Recipe` in recipes/supervised.py, and for
rewards `RewardFunction` in rewards/answer.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from finecut.proto import extension_pb2
from finecut.proto.config import UserError
from finecut.proto.run import user_code

if TYPE_CHECKING:
    from finecut.trainer.config import RecipeConfig
    from finecut.trainer.recipes.objective import Objective
    from finecut.trainer.recipes.supervised import Recipe


class Schedule(Protocol):
    """A learning rate over time. It has no state: a resumed run asks for any step."""

    def __call__(self, step: int, total_steps: int) -> float:
        """The learning rate of `step`, from 1 to `total_steps`, as a multiple of the peak; 0 or more."""


def schedule(code: extension_pb2.UserCode) -> Schedule:
    """The schedule that training.schedule.custom names."""
    return _with_methods(user_code.make(code, "training.schedule.custom"), code, "training.schedule.custom", "__call__")


def objective(code: extension_pb2.UserCode) -> Objective:
    """The loss that sft.loss names."""
    methods = ("num_units", "losses", "metrics", "resumed", "step_done", "before_checkpoint")
    return _with_methods(user_code.make(code, "sft.loss"), code, "sft.loss", *methods)


def recipe(code: extension_pb2.UserCode, config: RecipeConfig) -> Recipe:
    """The recipe that custom.recipe names."""
    found = user_code.make(code, "custom.recipe", config)
    return _with_methods(found, code, "custom.recipe", "config", "data_kind", "output_head", "objective")


def _with_methods(found: Any, code: extension_pb2.UserCode, field: str, *names: str) -> Any:
    missing = [name for name in names if not hasattr(found, name)]
    if missing:
        raise UserError(
            f"{field}: {code.path!r} returned a {type(found).__name__}, which lacks {', '.join(missing)}; see"
            " docs/extending.md for what it needs"
        )
    return found
