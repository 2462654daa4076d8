"""The loop of the supervised recipes: every rank runs this same program.

    packed blocks -> Recipe.objective -> loss summed over units (trained tokens, pairs)
                  -> / units of the whole step, over micro-batches and ranks -> AdamW

Differs from common practice in the normalisation: no mean of means, so neither gradient accumulation nor the number of
ranks changes the gradient. With LoRA only the adapters are trained, checkpointed and saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from finecut.proto import artifact_pb2
from finecut.proto.run import artifacts
from finecut.trainer.checkpoint import location, random_state
from finecut.trainer.checkpoint.store import CheckpointStore, TrainState
from finecut.trainer.config import Precision, RecipeConfig, StagePlace
from finecut.trainer.data.source_rows import SourceMeter
from finecut.trainer.liveness.liveness import Liveness
from finecut.trainer.liveness.notice import Preempted
from finecut.trainer.metrics.recorder import Recorder
from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import ModelSource, locate_model, materialize, save_adapter, save_model
from finecut.trainer.models.lora import apply_lora
from finecut.trainer.models.tokenizer_files import copy_tokenizer
from finecut.trainer.models.vocabulary import grow
from finecut.trainer.ops import kernels
from finecut.trainer.parallel import mesh, out_of_memory, planned
from finecut.trainer.parallel import precision as number_formats
from finecut.trainer.parallel.loss_scale import LossScaler
from finecut.trainer.parallel.process_group import Devices, use_deterministic_kernels
from finecut.trainer.parallel.sharding import check_layout, parallelize
from finecut.trainer.planning.workload import Workload
from finecut.trainer.recipes import frozen, garbage, optimization
from finecut.trainer.recipes.describe import describe, describe_balance
from finecut.trainer.recipes.evaluation import evaluate, evaluation_due
from finecut.trainer.recipes.monitor import Monitor
from finecut.trainer.recipes.objective import Objective
from finecut.trainer.recipes.setup import Setup
from finecut.trainer.recipes.step import train_step
from finecut.trainer.recipes.supervised_data import open_data

__all__ = ["Recipe", "Setup", "TrainingResult", "build_model", "resume", "run", "save", "train", "train_step"]


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What the artifact's manifest says of the run; `metrics` are the loss a unit, and what the recipe adds."""

    steps: int
    adapter: bool
    base_model: str
    metrics: dict[str, float]
    tokenizer_fingerprint: str
    data_fingerprint: str


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

    # It may also have
    #   before_model(setup, liveness) -> recipe to go on with, lines for people. Collective; the model is not there yet.
    #   copies_of_policy(source) -> int, and roles_let_go, names of roles: see frozen.frozen_models.


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
    work = _workload(recipe, place, source, decoder_config, precision, devices)
    notes: Sequence[str] = ()
    if training.parallelism.is_automatic:
        training, *notes = planned.chosen(work, training, devices)
        config = dataclasses.replace(config, training=training)
        recipe = dataclasses.replace(recipe, config=config)  # type: ignore[type-var]
    check_layout(training, decoder_config, devices.world_size)
    devices = mesh.arrange(devices, training.parallelism)
    random_state.seed(training.seed, devices.data_rank)
    data = open_data(place.data, source, decoder_config, training, devices, config.added_tokens, recipe.data_kind)
    memory = out_of_memory.plan(work, training, devices)
    with out_of_memory.explained(memory, devices.device):
        return train(recipe, Setup(place, source, decoder_config, precision, data, devices, tuple(notes)), liveness)


def _workload(
    recipe: Recipe,
    place: StagePlace,
    source: ModelSource,
    decoder_config: DecoderConfig,
    precision: Precision,
    devices: Devices,
) -> Workload:
    """What the planner has to know of the run."""
    config, head = recipe.config, recipe.output_head(source)
    others = frozen.frozen_models(recipe, place, source, decoder_config)
    block_size = artifacts.read(place.data).data.block_size
    num_outputs = head.num_outputs if head else None
    return planned.workload(
        decoder_config, config.lora, config.training, precision, block_size, devices, others, num_outputs
    )


def train(recipe: Recipe, setup: Setup, liveness: Liveness) -> TrainingResult:
    """`run`, once it is clear that everything fits together."""
    if prepare := getattr(recipe, "before_model", None):
        recipe, notes = prepare(setup, liveness)
        setup = dataclasses.replace(setup, notes=(*setup.notes, *notes))
    config, place, data, devices = recipe.config, setup.place, setup.data, setup.devices
    run = _start(recipe, setup)
    with contextlib.closing(data), Recorder(place, data.total_steps, run.state.step, devices) as recorder:
        _tell_start(run, recipe, setup, recorder)
        monitor = Monitor(run.objective, run.model, setup, config.training.metrics, recorder, run.state.step)
        _loop(run, recipe, setup, monitor, recorder, liveness)
        liveness.at(run.state.step, "export")
        run.store.wait()
        save(run.model, place, setup.source, data.tokenizer, devices)
        recorder.message(
            f"trained {run.state.step} steps; the {'adapter' if run.model.is_adapter else 'model'} is written"
        )
    return TrainingResult(
        steps=run.state.step,
        adapter=run.model.is_adapter,
        base_model=str(setup.source.base.absolute()),
        metrics=run.state.metrics,
        tokenizer_fingerprint=data.tokenizer_fingerprint,
        data_fingerprint=data.fingerprint,
    )


def _loop(run: _Run, recipe: Recipe, setup: Setup, monitor: Monitor, recorder: Recorder, liveness: Liveness) -> None:
    """Steps, evaluations and checkpoints. Raises Preempted when told to stop, once the checkpoint is written."""
    config, data, devices, state = recipe.config, setup.data, setup.devices, run.state

    def measure() -> None:
        with monitor.phase("evaluation"):
            evaluate(run.model, run.objective, data, config, state, recorder, devices, liveness)

    if state.step == 0:
        measure()
    seen = SourceMeter(data.sources, data.order, state.step)
    first_step = state.step + 1
    for step in range(first_step, data.total_steps + 1):
        liveness.at(step, "train")
        with monitor.step(step, run.scaler.scale) as objective:
            numbers = train_step(run.model, run.optimizer, run.scaler, data, config, step, devices, objective)
        seen.add(numbers.source_tokens_S)
        state.step, state.blocks = step, data.order.position(step)
        state.metrics |= {"loss": numbers.loss} | numbers.metrics
        if step == first_step:
            garbage.settle()
        monitor.record(step, numbers, seen.scalars(), is_last=step == data.total_steps)
        if evaluation_due(config, step, data.total_steps):
            measure()
        stop_reason = liveness.should_stop(devices)
        if run.store.due(step, data.total_steps) or stop_reason:
            liveness.at(step, "checkpoint")
            with monitor.phase("checkpoint"):
                run.objective.before_checkpoint(step)
                state.loss_scale = run.scaler.state()
                run.store.save(run.model, run.optimizer, state)
        if stop_reason:
            run.store.wait()
            raise Preempted(step, stop_reason)


@dataclasses.dataclass
class _Run:
    """What changes while a recipe trains."""

    model: Decoder
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: LossScaler
    store: CheckpointStore
    state: TrainState
    notes: list[str]  # what was found of an earlier try


def _start(recipe: Recipe, setup: Setup) -> _Run:
    """Builds everything, and takes over the newest checkpoint. Collective."""
    config, training, place, devices = recipe.config, recipe.config.training, setup.place, setup.devices
    head = recipe.output_head(setup.source)
    model = build_model(config, setup.decoder_config, setup.source, setup.precision, devices, head)
    objective = recipe.objective(model, setup)
    optimizer = optimization.adamw(model, training.optimizer, training.parallelism.offload_optimizer)
    scaler = LossScaler(enabled=setup.precision is Precision.FP16)
    checkpoints = location.at(place.checkpoints, place.encryption)
    store = CheckpointStore(
        checkpoints, training.checkpointing, training.seed, devices, accepts_other_code=place.accepts_other_code
    )
    fresh = TrainState(place.config_fingerprint, setup.data.fingerprint, place.code_version)
    state, notes = resume(store, model, optimizer, scaler, fresh)
    store.prepare(model, optimizer)
    objective.resumed(state.step)
    return _Run(model, objective, optimizer, scaler, store, state, notes)


def _tell_start(run: _Run, recipe: Recipe, setup: Setup, recorder: Recorder) -> None:
    """Says what was found and what follows from the config."""
    data, devices, precision = setup.data, setup.devices, setup.precision
    remarks = number_formats.remarks(recipe.config.training.precision, precision, setup.decoder_config.family)
    about = describe(run.model, data, precision, run.state, devices)
    for note in [*run.notes, *setup.notes, about, *remarks, *data.notes]:
        recorder.message(note)
    if devices.world_size > 1:
        recorder.message(describe_balance(data, run.state))


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
