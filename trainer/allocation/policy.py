"""How many GPUs generate and how many train, decided between steps from what the last steps took. Pure.

A step takes samples that were generated with g GPUs in a seconds each, and trains on them with t GPUs; the slower side
waits for the other. Work is known from what was measured (GPU-seconds a step, on either side), so the best split is the
one that lets both take equally long, and moving costs time only when it is done.
"""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What is allowed. A side never has fewer GPUs than its smallest."""

    num_gpus: int
    min_generating: int = 1
    min_training: int = 1
    # GPUs are moved in groups of so many: a rollout engine, or what keeps the trainer's mesh whole.
    group: int = 1
    # Where only one side moves: GPUs that train whatever generates. GPUs that nobody needs are then given back.
    # None: those train that do not generate.
    num_training: int | None = None
    # GPUs that train are a multiple of it.
    training_multiple: int = 1

    def training(self, split: int) -> int:
        """GPUs that train while `split` generate."""
        return self.num_gpus - split if self.num_training is None else self.num_training

    def splits(self) -> list[int]:
        """Numbers of generating GPUs that are allowed, ascending."""
        last = self.num_gpus - (self.min_training if self.num_training is None else self.num_training)
        allowed = range(self.min_generating, last + 1, self.group)
        return [split for split in allowed if self.training(split) % self.training_multiple == 0]


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """What one step took, in seconds of wall-clock at the split that it ran with."""

    num_generating: int
    generating_s: float
    training_s: float


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """When GPUs move."""

    # What a move costs: engines start or weights are resharded, while nobody works.
    move_s: float = 30.0
    # Weight of the newest step in the running mean of work. High follows a trend, low ignores noise.
    smoothing: float = 0.15
    # A move must pay for itself this many times over within `horizon_steps`.
    payback: float = 2.0
    horizon_steps: int = 20
    # Steps that must pass after a move, so that what is measured is of the new split.
    settle_steps: int = 1
    # Where GPUs can be given back: how much longer a step may take for it.
    slack: float = 0.05


class AllocationPolicy:
    """Decides after each step; `split` is the number of generating GPUs."""

    def __init__(
        self, bounds: Bounds, config: PolicyConfig, split: int, work: tuple[float, float] | None = None
    ) -> None:
        """`work`: as the policy that decided on this split knew it; a move has just been made then."""
        assert split in bounds.splits(), (split, bounds)
        self.split = split
        self._bounds = bounds
        self._config = config
        self._generating_work, self._training_work = work or (math.nan, math.nan)
        self._steps_since_move = 0 if work else config.settle_steps

    @property
    def work(self) -> tuple[float, float]:
        """GPU-seconds a step of generating and of training, after a step."""
        return self._generating_work, self._training_work

    def after_step(self, times: StepTimes) -> int:
        """Takes what the step took; returns the split of the next one, at whose border GPUs move."""
        generating = times.generating_s * times.num_generating
        training = times.training_s * self._bounds.training(times.num_generating)
        self._generating_work = self._mean(self._generating_work, generating)
        self._training_work = self._mean(self._training_work, training)
        self._steps_since_move += 1
        if self._steps_since_move <= self._config.settle_steps:
            return self.split
        best = min(self._bounds.splits(), key=self._step_s)
        saved_s = (self._step_s(self.split) - self._step_s(best)) * self._config.horizon_steps
        if saved_s > self._config.payback * self._config.move_s:
            self.split, self._steps_since_move = best, 0
        elif (fewest := self._fewest(self._step_s(best))) < self.split:
            self.split, self._steps_since_move = fewest, 0
        return self.split

    def _fewest(self, best_s: float) -> int:
        """The smallest split with which a step is hardly longer; the present one where GPUs cannot be given back."""
        if self._bounds.num_training is None:
            return self.split
        allowed_s = best_s * (1 + self._config.slack)
        return next(split for split in self._bounds.splits() if self._step_s(split) <= allowed_s)

    def _step_s(self, split: int) -> float:
        """What a step would take, both sides at work at the same time."""
        return max(self._generating_work / split, self._training_work / self._bounds.training(split))

    def _mean(self, mean: float, value: float) -> float:
        if math.isnan(mean):
            return value
        return mean + self._config.smoothing * (value - mean)
