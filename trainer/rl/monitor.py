"""Watches a recipe with rollouts: time and memory of its phases, MFU, goodput, details now and then, what goes wrong.

Session.at(step, "rollout") -> the phase before ends, this one begins: seconds and peak memory of each
Learner.update              -> its objective is a Watched one: batches, gradients, what is not finite
judge                       -> sampled(): what the step learns from
finish_step                 -> record(): one collective of a few numbers a rank
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from finecut.trainer.keeping import MetricsConfig
from finecut.trainer.metrics import anomalies, network
from finecut.trainer.metrics.goodput import Goodput
from finecut.trainer.metrics.profiling import Profiler
from finecut.trainer.metrics.recorder import Recorder
from finecut.trainer.recipes.monitor import mfu, peak_of
from finecut.trainer.recipes.rank_numbers import OfRank, RankNumbers
from finecut.trainer.recipes.watched import Watched
from finecut.trainer.rl import unlikely_tokens
from finecut.trainer.rl.learner import Learner
from finecut.trainer.rl.setup import RlSetup
from finecut.trainer.rollout.sample import Sample

_PHASES = ("train", "rollout", "score", "publish", "evaluation", "checkpoint")


class RolloutMonitor:
    """One run on one rank."""

    def __init__(self, setup: RlSetup, learners: Sequence[Learner], recorder: Recorder, step: int) -> None:
        """`learners`: the policy first; `step`: the one that the run continues after."""
        devices, folder = setup.devices, setup.place.artifact.parent
        self._setup, self._recorder = setup, recorder
        self._config: MetricsConfig = setup.config.training.metrics
        self._watched = [Watched(learner.model, devices, folder) for learner in learners]
        for learner, watched in zip(learners, self._watched, strict=True):
            learner.watched = watched
        self._ranks = RankNumbers(devices, _PHASES, recorder.message)
        self._phase = contextlib.ExitStack()
        self._goodput = Goodput(folder, step)
        self._spikes = anomalies.SpikeDetector(self._config.spike_deviations, "gradient norm")
        self._profiler = Profiler(self._config.profile, folder, devices.is_main, recorder.message, learners[0].model)
        self._stragglers = network.Stragglers()
        self._peak = peak_of(devices, setup.precision)
        self._samples: Sequence[Sample] = ()

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """A step runs inside, from its rollouts to its checkpoint."""
        for watched in self._watched:
            watched.begin(self._is_detailed(step))
        with self._profiler.step(step):
            yield
        self.rests()

    def at(self, phase: str) -> None:
        """The phase before ends, and this one begins."""
        self._phase.close()
        self._phase.enter_context(self._ranks.phase(phase))

    def rests(self) -> None:
        """The phase before ends."""
        self._phase.close()

    def sampled(self, samples: Sequence[Sample]) -> None:
        """What the step learns from; the same on every rank."""
        self._samples = samples
        for watched in self._watched:
            watched.examples = [sample.record_id for sample in samples]

    def saved(self, step: int) -> None:
        """A checkpoint was written."""
        if self._setup.devices.is_main:
            self._goodput.saved(step)

    def record(self, step: int, found: Mapping[str, float], is_last: bool) -> dict[str, float]:
        """What this adds to the numbers of a step. Collective."""
        self.rests()
        seconds, is_detailed = found["step_seconds"], self._is_detailed(step)
        self._goodput.add(seconds)
        if spike := self._spikes.add(step, found["gradient_norm"]):
            kept = self._watched[0].keep_examples(dataclasses.asdict(spike))
            self._recorder.message(f"{spike}; the records of its answers are in {kept}")
        policy = self._watched[0]
        own = OfRank(sum(watched.flops() for watched in self._watched), 0.0, policy.num_documents())
        trained = sum(sum(sample.loss_mask) for sample in self._samples)
        exchanged = self._ranks.exchange(own, trained, is_detailed)
        values = mfu(exchanged.flops, seconds, self._setup.devices, self._peak) | exchanged.values
        del values["data_wait_seconds_slowest_rank"]  # it waits for samples, not for data
        values["goodput"] = self._goodput.share()
        peaks = [value for name, value in values.items() if name.startswith("memory/") and name.endswith("/peak_gib")]
        values["peak_memory_gib"] = max(peaks)
        if is_detailed:
            values |= self._details(step)
        if is_last:
            self._profiler.finish(step)
        return values

    def _is_detailed(self, step: int) -> bool:
        every = self._config.detail_every_steps
        return every > 0 and step % every == 0

    def _details(self, step: int) -> dict[str, float]:
        """The costlier records of a step. Collective."""
        found = {f"gradient_norm/{block}": norm for block, norm in self._watched[0].norms.items()}
        probed = network.probe(self._setup.devices, step // self._config.detail_every_steps)
        for told in self._stragglers.add(probed):
            self._recorder.message(told)
        hardest = unlikely_tokens.of_samples(self._samples, self._setup.tokenizer.decode)
        self._recorder.histogram("tokens/loss", step, hardest.nats_N)
        self._recorder.text("tokens/worst", step, hardest.table())
        return found | probed.scalars() | hardest.scalars()
