"""Watches the supervised loop: times, memory, MFU, details now and then, and what goes wrong.

    loop                      Monitor
    with step(n): train_step  -> its losses(), step_done() stand in for the objective's: batches and gradients are seen
    record(n, numbers)        -> one collective of a few numbers a rank; TensorBoard and the event log; spikes; alarms
    with phase("checkpoint")  -> seconds and peak memory of what is no training step

Nothing here waits for the device within a step, but in those of `metrics.detail_every_steps`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from finecut.trainer.config import Precision
from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.keeping import MetricsConfig
from finecut.trainer.metrics import anomalies, flops, gradients, network, non_finite
from finecut.trainer.metrics.goodput import Goodput
from finecut.trainer.metrics.memory import Circumstances, MemoryAlarm, MemoryMeter, Usage
from finecut.trainer.metrics.memory_limit import memory_limit_gib
from finecut.trainer.metrics.profiling import Profiler
from finecut.trainer.metrics.recorder import Recorder
from finecut.trainer.metrics.throughput import Throughput
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.parallel import planned
from finecut.trainer.recipes import hard_tokens
from finecut.trainer.recipes.objective import Losses, Objective
from finecut.trainer.recipes.setup import Setup
from finecut.trainer.recipes.step import StepNumbers

_MOST_RANKS_SHOWN = 16  # with numbers of their own; of more, the extremes alone


class Monitor:
    """One run on one rank; an Objective that passes on to the recipe's."""

    def __init__(
        self, objective: Objective, model: Decoder, setup: Setup, config: MetricsConfig, recorder: Recorder, step: int
    ) -> None:
        """`step`: the one that the run continues after."""
        self._objective, self._model, self._setup = objective, model, setup
        self._config, self._recorder = config, recorder
        devices, folder = setup.devices, setup.place.artifact.parent
        self._folder = folder
        self._meter = MemoryMeter(devices.device)
        self._alarms: dict[str, MemoryAlarm] = {}
        self._throughput = Throughput()
        self._goodput = Goodput(folder, step)
        self._spikes = anomalies.SpikeDetector(config.spike_deviations)
        self._profiler = Profiler(config.profile, folder, devices.is_main, recorder.message)
        self._stragglers = network.Stragglers()
        self._peak = _peak_of(setup)
        self._batches: list[MicroBatch] = []
        self._phases: dict[str, tuple[float, Usage]] = {}
        self._flops = 0.0
        self._seconds = 0.0
        self._norms: dict[str, float] = {}
        self._loss_scale = 1.0
        self._step = step

    # The objective's methods.

    def num_units(self, batch: MicroBatch) -> int:
        """The recipe's."""
        return self._objective.num_units(batch)

    def losses(self, model: Decoder, batch: MicroBatch, gradient_scale: float) -> Losses:
        """The recipe's; remembers the batch."""
        if model.training:
            self._batches.append(batch)
        return self._objective.losses(model, batch, gradient_scale)

    def metrics(self, sums: Mapping[str, Tensor], num_units: int) -> dict[str, float]:
        """The recipe's."""
        return self._objective.metrics(sums, num_units)

    def resumed(self, step: int) -> None:
        """The recipe's."""
        self._objective.resumed(step)

    def step_done(self, step: int) -> None:
        """The recipe's; in a step with details, the norms of the gradients that are there now."""
        self._objective.step_done(step)
        if self._is_detailed(step):
            self._norms = gradients.block_norms(self._model, self._loss_scale)

    def before_checkpoint(self, step: int) -> None:
        """The recipe's."""
        self._objective.before_checkpoint(step)

    # The loop's.

    @contextlib.contextmanager
    def step(self, step: int, loss_scale: float) -> Iterator[None]:
        """A training step runs inside. What is not finite is traced to its module before it ends the run."""
        self._step, self._loss_scale = step, loss_scale
        self._batches, self._norms = [], {}
        self._meter.begin()
        started = time.perf_counter()
        with self._profiler.step(step):
            try:
                yield
            except FloatingPointError as error:
                raise FloatingPointError(f"{error}; {self._source(step)}") from error
        self._seconds = time.perf_counter() - started
        self._phases["train"] = (self._seconds, self._meter.usage())

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Something else than a training step runs inside, such as "evaluation" or "checkpoint"."""
        self._meter.begin()
        started = time.perf_counter()
        yield
        self._phases[name] = (time.perf_counter() - started, self._meter.usage())
        if name == "checkpoint" and self._setup.devices.is_main:
            self._goodput.saved(self._step)

    def record(self, step: int, numbers: StepNumbers, more: Mapping[str, float], is_last: bool) -> None:
        """Takes the numbers of a step, and writes what is due. Collective."""
        self._throughput.add(numbers.tokens, self._seconds)
        self._goodput.add(self._seconds)
        self._flops += self._flops_of_step()
        if spike := self._spikes.add(step, numbers.loss):
            self._tell_spike(spike, numbers)
        is_detailed = self._is_detailed(step)
        details = self._details(step) if is_detailed else {}
        if step % self._config.every_steps == 0 or is_last or is_detailed:
            values = numbers.scalars() | self._rates() | self._of_ranks(numbers, is_detailed)
            values |= {"goodput": self._goodput.share()} | dict(more) | details
            self._recorder.step(step, values)
        if is_last:
            self._profiler.finish(step)

    def _is_detailed(self, step: int) -> bool:
        every = self._config.detail_every_steps
        return every > 0 and step % every == 0

    def _flops_of_step(self) -> float:
        """Of this rank's share of the batch."""
        model = self._model
        lengths = [length for batch in self._batches for length in batch.document_lengths.tolist()]
        trained = sum(batch.tokens.trained for batch in self._batches)
        outputs = model.num_outputs if model.output_head else None
        return flops.step_flops(model.config, lengths, trained, model.lora, outputs) / self._setup.devices.tensor_size

    def _rates(self) -> dict[str, float]:
        """Since the last record."""
        return self._throughput.take() | {"step_seconds": self._seconds}

    def _of_ranks(self, numbers: StepNumbers, is_detailed: bool) -> dict[str, float]:
        """What differs from rank to rank, exchanged at once. Collective."""
        devices = self._setup.devices
        names = ("train", "evaluation", "checkpoint")
        usage = {name: self._phases[name] for name in names if name in self._phases}
        own = [self._flops, numbers.data_seconds, sum(len(batch.document_lengths) for batch in self._batches)]
        for name in names:
            seconds, held = usage.get(name, (0.0, Usage(0.0, 0.0, 0.0)))
            own += [seconds, held.allocated, held.reserved, held.peak]
        rows = [0.0] * (len(own) * devices.world_size)
        rows[len(own) * devices.rank : len(own) * (devices.rank + 1)] = own
        gathered = torch.tensor(devices.sum(*rows)).view(devices.world_size, len(own))
        self._phases, flops_done, self._flops = {}, self._flops, 0.0
        found = self._mfu(float(gathered[:, 0].sum()), flops_done)
        found["data_wait_seconds_slowest_rank"] = float(gathered[:, 1].max())
        documents = int(gathered[:, 2].sum())
        for number, name in enumerate(names):
            seconds, allocated, reserved, peak = gathered[:, 3 + 4 * number : 7 + 4 * number].T
            if float(peak.max()):
                found |= self._memory(name, allocated, reserved, peak)
                if name != "train":
                    found[f"{name}_seconds"] = float(seconds.max())
                now = Circumstances(
                    numbers.tokens.trained, documents, float(reserved.max()), self._meter.num_retries(), is_detailed
                )
                alarm = self._alarms.setdefault(name, MemoryAlarm(name))
                if told := alarm.add(peak.tolist(), now):
                    self._recorder.message(told)
        return found

    def _memory(self, phase: str, allocated: Tensor, reserved: Tensor, peak: Tensor) -> dict[str, float]:
        """Of the fullest rank, and of each of a few."""
        found = {
            f"memory/{phase}/allocated_gib": float(allocated.max()),
            f"memory/{phase}/reserved_gib": float(reserved.max()),
            f"memory/{phase}/peak_gib": float(peak.max()),
        }
        if phase == "train":
            found["peak_memory_gib"] = float(peak.max())
            found["memory_limit_gib"] = memory_limit_gib(self._setup.devices.device)
            if 1 < len(peak) <= _MOST_RANKS_SHOWN:
                found |= {f"memory/rank{rank}/peak_gib": value for rank, value in enumerate(peak.tolist())}
        return found

    def _mfu(self, of_all: float, own: float) -> dict[str, float]:
        """Over the time since the last record; MFU where the device's peak is known."""
        seconds = self._throughput.last_seconds
        if not seconds:
            return {}
        per_rank = of_all / self._setup.devices.world_size / seconds
        found = {"tflops_per_second_per_rank": per_rank / 1e12}
        return found | ({"mfu": per_rank / self._peak} if self._peak else {})

    def _details(self, step: int) -> dict[str, float]:
        """The costlier records of a step. Collective."""
        devices = self._setup.devices
        found = {f"gradient_norm/{block}": norm for block, norm in self._norms.items()}
        every = self._config.detail_every_steps
        probed = network.probe(devices, step // every)
        for told in self._stragglers.add(probed):
            self._recorder.message(told)
        tokenizer = self._setup.data.tokenizer
        hardest = hard_tokens.measure(self._objective, self._model, self._batches, tokenizer, devices.is_main)
        if hardest is not None:
            self._recorder.histogram("tokens/loss", step, hardest.nats_N)
            self._recorder.text("tokens/worst", step, hardest.table())
            found |= hardest.scalars()
            if hardest.worst:
                worst = hardest.worst[0]
                self._recorder.message(
                    f"step {step}: the hardest token is {worst.token!r} after {worst.before!r} ({worst.nats:.1f} nats)"
                )
        return found | probed.scalars()

    def _tell_spike(self, spike: anomalies.Spike, numbers: StepNumbers) -> None:
        """Records a spike with the examples of all ranks. Collective, as all ranks see the same loss."""
        entry = dataclasses.asdict(spike) | {"gradient_norm": numbers.gradient_norm}
        self._recorder.message(f"{spike}; its examples are in {self._keep_examples(entry)}")

    def _source(self, step: int) -> str:
        """Runs the batch again to find the module; keeps its examples. Collective."""
        batches = list(self._batches)
        kept = self._keep_examples({"step": step, "not_finite": True})

        def run_again() -> None:
            for batch in batches:
                self._objective.losses(self._model, batch, 1.0).loss.backward()

        try:
            found = non_finite.first_source(self._model, run_again)
        except RuntimeError as error:  # the search must not hide what it was for
            found = f"the search for its module failed: {str(error).splitlines()[0]}"
        return f"{found}; the batch's examples are in {kept}"

    def _keep_examples(self, entry: Mapping[str, object]) -> str:
        """Where the examples of this step's batch, of all ranks, are recorded. Collective."""
        devices = self._setup.devices
        own = [int(i) for batch in self._batches for i in batch.example_ids_BD[batch.has_document] if i]
        shares = devices.gather_objects(own if devices.rank % devices.tensor_size == 0 else [])
        ids = [i for share in shares for i in share]
        return anomalies.record(self._folder, entry, ids) if devices.is_main else ""


def _peak_of(setup: Setup) -> float | None:
    """Operations a second of the rank's GPU in the run's number format; None on CPUs and unknown GPUs."""
    device = planned.known_device(setup.devices.device)
    if device is None:
        return None
    return device.peak_32bit if setup.precision is Precision.FP32 else device.peak_16bit
