"""One optimizer step of the supervised recipes: a batch, its gradients, their clipping, AdamW."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import torch

from finecut.trainer.config import RecipeConfig
from finecut.trainer.data.balance import Imbalance
from finecut.trainer.data.batches import TokenCounts
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.parallel.loss_scale import LossScaler
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import optimization
from finecut.trainer.recipes.objective import Objective
from finecut.trainer.recipes.schedule import learning_rate_at
from finecut.trainer.recipes.supervised_data import SupervisedData


@dataclasses.dataclass(frozen=True)
class StepNumbers:
    """What one step measured, the same on every rank save `data_seconds`. `gradient_norm` is that before clipping."""

    loss: float
    learning_rate: float
    gradient_norm: float
    loss_scale: float
    tokens: TokenCounts
    imbalance: Imbalance
    source_tokens_S: np.ndarray  # of each source, with the names of SupervisedData.sources
    data_seconds: float  # that this rank waited for its blocks
    metrics: dict[str, float]  # the recipe's own

    def scalars(self) -> dict[str, float]:
        """The numbers that are recorded as they are."""
        return {
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "loss_scale": self.loss_scale,
            "attention_imbalance": self.imbalance.balanced,
            "attention_imbalance_in_order": self.imbalance.in_order,
            "data_wait_seconds": self.data_seconds,
            **self.metrics,
        }


def train_step(
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    scaler: LossScaler,
    data: SupervisedData,
    config: RecipeConfig,
    step: int,
    devices: Devices,
    objective: Objective | None = None,
) -> StepNumbers:
    """One optimizer step, or none where FP16 gradients overflowed. `objective` None: cross entropy."""
    settings, loss_scale = config.training.optimizer, scaler.scale
    learning_rate = learning_rate_at(step, data.total_steps, settings.learning_rate, config.training.schedule)
    started = time.perf_counter()
    batch = data.train.step(step)
    data_seconds = time.perf_counter() - started
    loss = optimization.forward_backward(model, batch.micro_batches, loss_scale, devices, objective)
    if objective is not None:
        objective.step_done(step)
    gradient_norm = optimization.clip_gradients(model, loss_scale, settings.max_gradient_norm)
    # Both numbers are reductions over all ranks, so all ranks decide alike.
    if scaler.update(math.isfinite(loss.mean) and math.isfinite(gradient_norm), step):
        optimization.set_learning_rate(optimizer, learning_rate)
        optimizer.step()
    optimizer.zero_grad()
    return StepNumbers(
        loss=loss.mean,
        learning_rate=learning_rate,
        gradient_norm=gradient_norm,
        loss_scale=loss_scale,
        tokens=loss.tokens,
        imbalance=batch.imbalance,
        source_tokens_S=batch.source_tokens_S,
        data_seconds=data_seconds,
        metrics=loss.metrics,
    )
