"""A model that learns from minibatches of answers: its optimizer, its learning rate, its loss scale."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from finecut.trainer.config import Precision, TrainingConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.parallel.loss_scale import LossScaler
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import optimization
from finecut.trainer.recipes.objective import Objective
from finecut.trainer.recipes.schedule import learning_rate_at
from finecut.trainer.recipes.watched import Watched
from finecut.trainer.rl.rows import AnswerBatch


class Learner:
    """The policy, or the critic."""

    def __init__(
        self,
        model: Decoder,
        training: TrainingConfig,
        peak: float,
        precision: Precision,
        last_step: int,
        devices: Devices,
    ) -> None:
        """`peak` learning rate; the schedule counts steps of the run, whose minibatches share one rate."""
        self.model = model
        self._settings = dataclasses.replace(training.optimizer, learning_rate=peak)
        self._schedule = training.schedule
        self._last_step = last_step
        self._devices = devices
        self.optimizer = optimization.adamw(model, self._settings, training.parallelism.offload_optimizer)
        self.scaler = LossScaler(enabled=precision is Precision.FP16)
        self.watched: Watched | None = None

    def learning_rate(self, step: int) -> float:
        """Of all minibatches of `step` (from 1)."""
        return learning_rate_at(step, self._last_step, self._settings.learning_rate, self._schedule)

    def update(self, batches: Sequence[AnswerBatch], objective: Objective, step: int) -> dict[str, float]:
        """One optimizer step on a minibatch. Collective. Returns what it measured, the same on every rank.

        Raises FloatingPointError, or LossScaleError, for a loss or a gradient that is not finite.
        """
        scale = self.scaler.scale
        if self.watched:
            objective = self.watched.around(objective, scale)
        loss = optimization.forward_backward(self.model, list(batches), scale, self._devices, objective)
        objective.step_done(step)
        norm = optimization.clip_gradients(self.model, scale, self._settings.max_gradient_norm)
        if self._is_step(math.isfinite(loss.mean) and math.isfinite(norm), step):
            optimization.set_learning_rate(self.optimizer, self.learning_rate(step))
            self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": loss.mean, "gradient_norm": norm} | loss.metrics

    def _is_step(self, is_finite: bool, step: int) -> bool:
        """Whether the gradients are good for a step. What is not finite is traced to its module. Collective."""
        try:
            return self.scaler.update(is_finite, step)
        except FloatingPointError as error:
            source = f"; {self.watched.source(step)}" if self.watched else ""
            raise FloatingPointError(f"{error}{source}") from error


def minibatches(
    num_answers: int, group_size: int, count: int, passes: int, seed: int, step: int
) -> Iterator[list[int]]:
    """Numbers of the answers of each minibatch, pass after pass: whole groups, in an order of its own each pass."""
    groups = num_answers // group_size
    for number in range(passes):
        order = np.random.default_rng((seed, step, number)).permutation(groups)
        for part in np.array_split(order, min(count, groups)):
            yield [int(group) * group_size + i for group in sorted(part) for i in range(group_size)]


def mean_of(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each number over the minibatches of a step."""
    return {name: sum(one[name] for one in found) / len(found) for name in found[0]}
