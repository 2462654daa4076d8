"""What a checkpoint of a recipe with rollouts keeps beside tensors and random generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from finecut.trainer.rl.learner import Learner
from finecut.trainer.rl.rollouts import Rollouts


class Kept(Protocol):
    """Something of a recipe that a checkpoint keeps as plain values, the same on every rank."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SessionPart:
    """Position, samples, loss scales and what the recipe keeps; the same on every rank."""

    every_rank = False

    def __init__(self, rollouts: Rollouts, learners: Mapping[str, Learner], kept: Mapping[str, Kept]) -> None:
        self._rollouts = rollouts
        self._learners = learners
        self._kept = kept

    def capture(self) -> dict[str, Any]:
        return {
            "rollouts": self._rollouts.capture(),
            "kept": {name: kept.state_dict() for name, kept in self._kept.items()},
            "loss_scales": {name: learner.scaler.state() for name, learner in self._learners.items()},
        }

    def restore(self, states: Sequence[dict[str, Any]], step: int) -> None:
        state = states[0]
        self._rollouts.restore(state["rollouts"])
        for name, kept in self._kept.items():
            kept.load_state_dict(state["kept"][name])
        for name, learner in self._learners.items():
            learner.scaler.load(state["loss_scales"][name])
