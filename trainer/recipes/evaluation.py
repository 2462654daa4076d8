"""The held-out loss while a supervised recipe trains."""

from __future__ import annotations

from finecut.trainer.checkpoint.store import TrainState
from finecut.trainer.config import RecipeConfig
from finecut.trainer.liveness.liveness import Liveness
from finecut.trainer.metrics.recorder import Recorder
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import optimization
from finecut.trainer.recipes.objective import Objective
from finecut.trainer.recipes.supervised_data import SupervisedData


def evaluation_due(config: RecipeConfig, step: int, last_step: int) -> bool:
    """Whether the held-out loss is measured after `step`: always after the last one."""
    every_steps = config.training.evaluation.every_steps
    return step == last_step or (every_steps is not None and step % every_steps == 0)


def evaluate(
    model: Decoder,
    objective: Objective,
    data: SupervisedData,
    config: RecipeConfig,
    state: TrainState,
    recorder: Recorder,
    devices: Devices,
    liveness: Liveness,
) -> None:
    """Measures the held-out loss, where anything is held out, and keeps the first and the newest values."""
    if data.evaluation is None:
        return
    liveness.at(state.step, "evaluation")
    total, by_source = optimization.TotalLoss(), {}
    for source, blocks in data.evaluation.by_source(config.training.evaluation.max_blocks):
        found = optimization.total_loss(model, liveness.each(blocks), devices, objective)
        total.add(found)
        by_source[source] = found.mean
    metrics = objective.metrics(total.sums, total.num_units)
    for name, value in ({"loss": total.mean} | metrics).items():
        state.metrics.setdefault(f"first_evaluation_{name}", value)
        state.metrics[f"evaluation_{name}"] = value
    recorder.evaluation(state.step, total.mean, by_source if len(by_source) > 1 else {}, metrics)
