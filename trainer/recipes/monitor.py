"""Watches the supervised loop: times, memory, MFU, details now and then, and what goes wrong.

    loop                      Monitor
    with step(n) as objective -> a Watched one stands in for the recipe's: batches and gradients are seen
    record(n, numbers)        -> one collective of a few numbers a rank; TensorBoard and the event log; spikes; alarms
    with phase("checkpoint")  -> seconds and peak memory of what is no training step

Nothing here waits for the device within a step, but in those of `metrics.detail_every_steps`. Where steps are so short
that records cost over a hundredth of them, fewer are made (see metrics/budget.py); rank 0 says when.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping

from finecut.trainer.config import Precision
from finecut.trainer.keeping import MetricsConfig
from finecut.trainer.metrics import anomalies, network
from finecut.trainer.metrics.budget import Budget
from finecut.trainer.metrics.goodput import Goodput
from finecut.trainer.metrics.profiling import Profiler
from finecut.trainer.metrics.recorder import Recorder
from finecut.trainer.metrics.throughput import Throughput
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.parallel import planned
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import hard_tokens
from finecut.trainer.recipes.objective import Objective
from finecut.trainer.recipes.rank_numbers import OfRank, RankNumbers
from finecut.trainer.recipes.setup import Setup
from finecut.trainer.recipes.step import StepNumbers
from finecut.trainer.recipes.watched import Watched

_PHASES = ("train", "evaluation", "checkpoint")
# What a run may spend on records, and on details, before they have to keep to half a hundredth of its time each.
_SAVED_S, _SAVED_FOR_DETAILS_S = 1.0, 20.0


class Monitor:
    """One run on one rank."""

    def __init__(
        self, objective: Objective, model: Decoder, setup: Setup, config: MetricsConfig, recorder: Recorder, step: int
    ) -> None:
        """`step`: the one that the run continues after."""
        self._objective, self._model, self._setup = objective, model, setup
        self._config, self._recorder = config, recorder
        devices, folder = setup.devices, setup.place.artifact.parent
        self._watched = Watched(model, devices, folder)
        self._ranks = RankNumbers(devices, _PHASES, recorder.message)
        self._throughput = Throughput()
        self._goodput = Goodput(folder, step)
        self._spikes = anomalies.SpikeDetector(config.spike_deviations)
        self._profiler = Profiler(config.profile, folder, devices.is_main, recorder.message, model)
        self._stragglers = network.Stragglers()
        self._peak = peak_of(devices, setup.precision)
        self._budget, self._budget_of_details = Budget(_SAVED_S), Budget(_SAVED_FOR_DETAILS_S)
        self._record_from, self._details_from = 0, 0
        self._flops = 0.0
        self._seconds = 0.0
        self._step = step

    @contextlib.contextmanager
    def step(self, step: int, loss_scale: float) -> Iterator[Objective]:
        """A training step runs inside, with this objective. What is not finite is traced to its module."""
        self._step = step
        self._watched.begin(self._is_detailed(step))
        started = time.perf_counter()
        with self._profiler.step(step), self._ranks.phase("train"):
            try:
                yield self._watched.around(self._objective, loss_scale)
            except FloatingPointError as error:
                raise FloatingPointError(f"{error}; {self._watched.source(step)}") from error
        self._seconds = time.perf_counter() - started

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Something else than a training step runs inside, such as "evaluation" or "checkpoint"."""
        with self._ranks.phase(name):
            yield
        if name == "checkpoint" and self._setup.devices.is_main:
            self._goodput.saved(self._step)

    def record(self, step: int, numbers: StepNumbers, more: Mapping[str, float], is_last: bool) -> None:
        """Takes the numbers of a step, and writes what is due. Collective."""
        self._throughput.add(numbers.tokens, self._seconds)
        self._goodput.add(self._seconds)
        self._flops += self._watched.flops()
        if spike := self._spikes.add(step, numbers.loss):
            self._tell_spike(spike, numbers)
        is_detailed = self._is_detailed(step)
        details = self._details(step) if is_detailed else {}
        is_due = step % self._config.every_steps == 0 and step >= self._record_from
        if is_due or is_last or is_detailed:
            started = time.thread_time()
            values = numbers.scalars() | self._throughput.take() | {"step_seconds": self._seconds}
            values |= self._of_ranks(step, numbers, is_detailed)
            values |= {"goodput": self._goodput.share()} | dict(more) | details
            self._recorder.step(step, values)
            self._budget.spend(time.thread_time() - started)
        if is_last:
            self._profiler.finish(step)

    def _is_detailed(self, step: int) -> bool:
        every = self._config.detail_every_steps
        return every > 0 and step % every == 0 and step >= self._details_from

    def _of_ranks(self, step: int, numbers: StepNumbers, is_detailed: bool) -> dict[str, float]:
        """What differs from rank to rank, and MFU, since the last record. Collective."""
        waits = self._budget.steps_to_wait(self._seconds), self._budget_of_details.steps_to_wait(self._seconds)
        own = OfRank(self._flops, numbers.data_seconds, self._watched.num_documents(), waits)
        found = self._ranks.exchange(own, numbers.tokens.trained, is_detailed)
        self._flops = 0.0
        self._record_from, self._details_from = (step + wait for wait in found.steps_to_wait)
        return mfu(found.flops, self._throughput.last_seconds, self._setup.devices, self._peak) | found.values

    def _details(self, step: int) -> dict[str, float]:
        """The costlier records of a step. Collective."""
        started = time.perf_counter()
        found = {f"gradient_norm/{block}": norm for block, norm in self._watched.norms.items()}
        probed = network.probe(self._setup.devices, step // self._config.detail_every_steps)
        for told in self._stragglers.add(probed):
            self._recorder.message(told)
        found |= probed.scalars() | self._hard_tokens(step)
        self._budget_of_details.spend(time.perf_counter() - started)
        return found

    def _hard_tokens(self, step: int) -> dict[str, float]:
        """Losses of single tokens. Collective."""
        data = self._setup.data
        measured = hard_tokens.measure(
            self._objective, self._model, self._watched.batches, data.tokenizer, data.sources.names, self._setup.devices
        )
        hardest = measured.losses
        if hardest is None:
            return measured.by_source
        self._recorder.histogram("tokens/loss", step, hardest.nats_N)
        self._recorder.text("tokens/worst", step, hardest.table())
        if hardest.worst:
            worst = hardest.worst[0]
            self._recorder.message(
                f"step {step}: the hardest token is {worst.token!r} after {worst.before!r} ({worst.nats:.1f} nats)"
            )
        return hardest.scalars() | measured.by_source

    def _tell_spike(self, spike: anomalies.Spike, numbers: StepNumbers) -> None:
        """Records a spike with the examples of all ranks. Collective, as all ranks see the same loss."""
        entry = dataclasses.asdict(spike) | {"gradient_norm": numbers.gradient_norm}
        self._recorder.message(f"{spike}; its examples are in {self._watched.keep_examples(entry)}")


def mfu(flops: float, seconds: float, devices: Devices, peak: float | None) -> dict[str, float]:
    """Operations of all ranks over seconds, by rank; MFU where the device's peak is known."""
    if not seconds:
        return {}
    per_rank = flops / devices.world_size / seconds
    return {"tflops_per_second_per_rank": per_rank / 1e12} | ({"mfu": per_rank / peak} if peak else {})


def peak_of(devices: Devices, precision: Precision) -> float | None:
    """Operations a second of the rank's GPU in the run's number format; None on CPUs and unknown GPUs."""
    device = planned.known_device(devices.device)
    if device is None:
        return None
    return device.peak_32bit if precision is Precision.FP32 else device.peak_16bit
