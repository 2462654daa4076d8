"""The loop of the supervised recipes: every rank runs this same program.

    packed blocks -> Recipe.objective -> loss summed over units (trained tokens, pairs)
                  -> / units of the whole step, over micro-batches and ranks -> AdamW

Differs from common practice in the normalisation: no mean of means, so neither gradient accumulation nor the number of
ranks changes the gradient. With LoRA only the adapters are trained, checkpointed and saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from finecut.proto import artifact_pb2
from finecut.trainer.checkpoint import location, random_state
from finecut.trainer.checkpoint.store import CheckpointStore, TrainState
from finecut.trainer.config import Precision, RecipeConfig, StagePlace
from finecut.trainer.data.balance import Imbalance
from finecut.trainer.data.batches import TokenCounts
from finecut.trainer.data.source_rows import SourceMeter
from finecut.trainer.liveness.liveness import Liveness
from finecut.trainer.liveness.notice import Preempted
from finecut.trainer.metrics.memory import peak_memory_gib
from finecut.trainer.metrics.recorder import Recorder
from finecut.trainer.metrics.throughput import Throughput
from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import ModelSource, locate_model, materialize, save_adapter, save_model
from finecut.trainer.models.lora import apply_lora
from finecut.trainer.models.tokenizer_files import copy_tokenizer
from finecut.trainer.models.vocabulary import grow
from finecut.trainer.ops import kernels
from finecut.trainer.parallel import mesh, out_of_memory
from finecut.trainer.parallel import precision as number_formats
from finecut.trainer.parallel.loss_scale import LossScaler
from finecut.trainer.parallel.process_group import Devices, use_deterministic_kernels
from finecut.trainer.parallel.sharding import check_layout, parallelize
from finecut.trainer.recipes import frozen, garbage, optimization
from finecut.trainer.recipes.objective import Objective
from finecut.trainer.recipes.schedule import learning_rate_at
from finecut.trainer.recipes.supervised_data import SupervisedData, open_data

_SURVEYED_STEPS = 100


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What the artifact's manifest says of the run; `metrics` are the loss a unit, and what the recipe adds."""

    steps: int
    adapter: bool
    base_model: str
    metrics: dict[str, float]
    tokenizer_fingerprint: str
    data_fingerprint: str


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run has once it is clear that everything fits together."""

    place: StagePlace
    source: ModelSource
    decoder_config: DecoderConfig
    precision: Precision
    data: SupervisedData
    devices: Devices


class Recipe(Protocol):
    """What one recipe adds to the loop. One file each."""

    @property
    def config(self) -> RecipeConfig:
        """The settings that all recipes share."""

    @property
    def data_kind(self) -> artifact_pb2.DataArtifact.Kind:
        """What it trains on."""

    def output_head(self, source: ModelSource) -> OutputHead | None:
        """What takes the place of the language-model head."""

    def objective(self, model: Decoder, setup: Setup) -> Objective:
        """The loss; loads what it needs beside the model. Collective."""


def run(recipe: Recipe, place: StagePlace, devices: Devices, liveness: Liveness) -> TrainingResult:
    """Trains from the newest checkpoint, or from the start, and writes the model to `place.artifact`. Collective.

    Raises UserError for what the user can mend; FloatingPointError or LossScaleError when the loss or a gradient is
    not finite; Preempted when `liveness` was told to stop, once the checkpoint is written.
    """
    config, training = recipe.config, recipe.config.training
    use_deterministic_kernels(training.deterministic)
    kernels.use(training.kernels, devices.device)

    source = locate_model(place.model)
    decoder_config = grow(
        DecoderConfig.from_folder(source.base), source.tokenizer, config.added_tokens, config.semantic_id_count
    )
    precision = number_formats.resolve(training.precision, devices.device, decoder_config.family)
    check_layout(training, decoder_config, devices.world_size)
    devices = mesh.arrange(devices, training.parallelism)
    random_state.seed(training.seed, devices.data_rank)
    data = open_data(place.data, source, decoder_config, training, devices, config.added_tokens, recipe.data_kind)
    beside = frozen.frozen_models(recipe, place, source, decoder_config)
    memory = out_of_memory.plan(decoder_config, config.lora, training, precision, data.block_size, devices, beside)
    with out_of_memory.explained(memory, devices.device):
        return train(recipe, Setup(place, source, decoder_config, precision, data, devices), liveness)


def train(recipe: Recipe, setup: Setup, liveness: Liveness) -> TrainingResult:
    """`run`, once it is clear that everything fits together."""
    config, training = recipe.config, recipe.config.training
    place, source, precision, data, devices = setup.place, setup.source, setup.precision, setup.data, setup.devices
    head = recipe.output_head(source)
    model = build_model(config, setup.decoder_config, source, precision, devices, head)
    objective = recipe.objective(model, setup)
    optimizer = optimization.adamw(model, training.optimizer, training.parallelism.offload_optimizer)
    scaler = LossScaler(enabled=precision is Precision.FP16)
    checkpoints = location.at(place.checkpoints, place.encryption)
    store = CheckpointStore(
        checkpoints, training.checkpointing, training.seed, devices, accepts_other_code=place.accepts_other_code
    )
    fresh = TrainState(place.config_fingerprint, data.fingerprint, place.code_version)
    state, notes = resume(store, model, optimizer, scaler, fresh)
    objective.resumed(state.step)

    with contextlib.closing(data), Recorder(place, data.total_steps, state.step, devices) as recorder:
        remarks = number_formats.remarks(training.precision, precision, setup.decoder_config.family)
        for note in [*notes, describe(model, data, precision, state, devices), *remarks, *data.notes]:
            recorder.message(note)
        if devices.world_size > 1:
            recorder.message(describe_balance(data, state))
        if state.step == 0:
            evaluate(model, objective, data, config, state, recorder, devices, liveness)
        throughput = Throughput()
        seen = SourceMeter(data.sources, data.order, state.step)
        first_step = state.step + 1
        for step in range(first_step, data.total_steps + 1):
            liveness.at(step, "train")
            started = time.perf_counter()
            numbers = train_step(model, optimizer, scaler, data, config, step, devices, objective)
            throughput.add(numbers.tokens, time.perf_counter() - started)
            seen.add(numbers.source_tokens_S)
            state.step, state.blocks = step, data.order.position(step)
            state.metrics |= {"loss": numbers.loss} | numbers.metrics
            if step == first_step:
                garbage.settle()

            if step % training.metrics_every_steps == 0 or step == data.total_steps:
                peak_memory = devices.max(peak_memory_gib(devices.device))
                values = numbers.scalars() | throughput.take() | {"peak_memory_gib": peak_memory}
                recorder.step(step, values | seen.scalars())
            if evaluation_due(config, step, data.total_steps):
                evaluate(model, objective, data, config, state, recorder, devices, liveness)
            stop_reason = liveness.should_stop(devices)
            if store.due(step, data.total_steps) or stop_reason:
                liveness.at(step, "checkpoint")
                objective.before_checkpoint(step)
                state.loss_scale = scaler.state()
                store.save(model, optimizer, state)
            if stop_reason:
                store.wait()
                raise Preempted(step, stop_reason)
        liveness.at(state.step, "export")
        store.wait()
        save(model, place, source, data.tokenizer, devices)
        recorder.message(f"trained {state.step} steps; the {'adapter' if model.is_adapter else 'model'} is written")

    return TrainingResult(
        steps=state.step,
        adapter=model.is_adapter,
        base_model=str(source.base.absolute()),
        metrics=state.metrics,
        tokenizer_fingerprint=data.tokenizer_fingerprint,
        data_fingerprint=data.fingerprint,
    )


def build_model(
    config: RecipeConfig,
    decoder_config: DecoderConfig,
    source: ModelSource,
    precision: Precision,
    devices: Devices,
    output_head: OutputHead | None = None,
) -> Decoder:
    """The decoder with its adapters, sharded, with the source's weights; no rank ever holds it whole."""
    with torch.device("meta"):
        model = Decoder(decoder_config, config.training.loss_chunk_tokens, output_head)
        if config.lora:
            apply_lora(model, config.lora)
    parallelize(model, config.training, precision, devices)
    materialize(model, source, devices.device, config.training.seed)
    return model


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


def resume(
    store: CheckpointStore, model: Decoder, optimizer: torch.optim.Optimizer, scaler: LossScaler, fresh: TrainState
) -> tuple[TrainState, list[str]]:
    """Takes over the newest whole checkpoint, or else `fresh`; also says in words what it found."""
    folder, notes = store.newest()
    if folder is None:
        return fresh, notes
    state = store.load(folder, model, optimizer, fresh)
    scaler.load(state.loss_scale)
    return state, [*notes, f"resumed from {folder}"]


def describe(model: Decoder, data: SupervisedData, precision: Precision, state: TrainState, devices: Devices) -> str:
    """The numbers that follow from the config, in one line."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{trained:,} of {total:,} parameters are trained in {precision.name} on {mesh.describe(devices)};"
        f" {data.order.num_blocks:,} blocks of {data.block_size:,} tokens, steps {state.step + 1} to {data.total_steps}"
    )


def describe_balance(data: SupervisedData, state: TrainState) -> str:
    """How even attention work is over ranks, before and after balancing, in the next steps."""
    first = min(state.step + 1, data.total_steps)
    last = min(state.step + _SURVEYED_STEPS, data.total_steps)
    found = data.train.survey(first, last)
    return (
        f"attention work of the busiest rank over the mean of all: {found.balanced:.2f} (blocks taken in order:"
        f" {found.in_order:.2f}), averaged over {last - first + 1} steps"
    )


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


def save(model: Decoder, place: StagePlace, source: ModelSource, tokenizer: Path, devices: Devices) -> None:
    """Writes the model in FP32 (the export stage chooses another type), or the adapter alone. Collective.

    Either comes with the tokenizer and the chat template that it was trained with.
    """
    if devices.is_main:
        shutil.rmtree(place.artifact, ignore_errors=True)  # what a killed try left; it had no manifest
        place.artifact.mkdir(parents=True)
    devices.barrier()
    if model.is_adapter:
        save_adapter(model, place.artifact, base_model=str(source.base.absolute()))
    else:
        save_model(model, place.artifact, source.base, torch.float32)
    if devices.is_main:
        copy_tokenizer(tokenizer, place.artifact)
