"""What a recipe with rollouts has while it runs: models, engines, rewards, prompts, checkpoints, records.

started()  waits for the engines (see opening.py), and gives them the weights of the version that the run is at
steps()    yields each step's number once everything is at the version before it; in the end of each the recipe
           calls `finish_step`, which publishes the weights, records, checkpoints, and stops on notice
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future

import torch
from torch import nn

from finecut.trainer.checkpoint import location
from finecut.trainer.checkpoint.store import CheckpointStore, TrainState
from finecut.trainer.liveness.liveness import Liveness
from finecut.trainer.liveness.notice import Preempted
from finecut.trainer.metrics.recorder import Recorder
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import garbage, supervised
from finecut.trainer.recipes.supervised import TrainingResult
from finecut.trainer.rl import allocation, movers
from finecut.trainer.rl.evaluation import Evaluation, Measurement
from finecut.trainer.rl.kept import Kept, SessionPart
from finecut.trainer.rl.learner import Learner
from finecut.trainer.rl.monitor import RolloutMonitor
from finecut.trainer.rl.rollouts import Rollouts
from finecut.trainer.rl.setup import RlSetup
from finecut.trainer.rl.start import Start
from finecut.trainer.rollout.fleet import Fleet


@dataclasses.dataclass
class Session:
    """One run. Everything is collective unless it says otherwise."""

    setup: RlSetup
    liveness: Liveness
    policy: Learner
    rollouts: Rollouts
    # Kept by checkpoints, by name; filled before `started`, as are the next two.
    kept: dict[str, Kept] = dataclasses.field(default_factory=dict)
    # Of held-out prompts, while training.
    measurements: list[Measurement] = dataclasses.field(default_factory=list)
    # Learners beside the policy, by name.
    learners: dict[str, Learner] = dataclasses.field(default_factory=dict)
    start: Start = dataclasses.field(default_factory=Start)
    # Engines that are being started, on rank 0.
    starting: Future[Fleet] | None = None
    # What the fleet has to say, from its own threads; told at the end of a step.
    messages: list[str] = dataclasses.field(default_factory=list)

    @property
    def devices(self) -> Devices:
        """This rank's place."""
        return self.setup.devices

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Takes over the newest checkpoint, or the start, and gives the engines the weights of that version."""
        place, training = self.setup.place, self.setup.config.training
        self._store = CheckpointStore(
            location.at(place.checkpoints, place.encryption),
            training.checkpointing,
            training.seed,
            self.devices,
            parts={"rollouts": SessionPart(self.rollouts, self._named_learners, self.kept)},
            accepts_other_code=place.accepts_other_code,
        )
        folder, notes = self._store.newest()
        self.state = TrainState(place.config_fingerprint, self.setup.data_fingerprint, place.code_version)
        if folder is not None:
            with self.start.phase("resume"):
                self.state = self._store.load(folder, self._models, self._optimizers, self.state)
            notes = [*notes, f"resumed from {folder}"]
        with Recorder(place, self.setup.last_step, self.state.step, self.devices) as self.recorder:
            self.monitor = RolloutMonitor(
                self.setup, list(self._named_learners.values()), self.recorder, self.state.step
            )
            for note in [*notes, *self.setup.notes]:
                self.recorder.message(note)
            self.rollouts.prepare()
            with self.start.phase("waiting for engines"):
                fleet = self.starting.result() if self.starting else None
                self.devices.barrier()
                self.rollouts.attach(fleet)
            with self.start.phase("first weights"):
                self.rollouts.publish(self.state.step)
            self.recorder.message(self.start.describe())
            if not self.state.step and self._evaluation.due(0):
                with self.start.phase("first evaluation"):
                    self._evaluate(0)
            yield

    def steps(self) -> Iterator[int]:
        """The numbers of the steps to do."""
        first = self.state.step + 1
        for step in range(first, self.setup.last_step + 1):
            self._step_began = time.perf_counter()
            self.rollouts.seconds.clear()
            with self.monitor.step(step):
                self.at(step, "rollout")
                self._is_first = step == first
                yield step
            if step == first:
                garbage.settle()

    def finish_step(self, step: int, metrics: Mapping[str, float], num_tokens: float) -> None:
        """Publishes the policy as version `step`, records, checkpoints where due. Raises Preempted on notice.

        Args:
          num_tokens: sampled in this step.
        """
        used = self._use_of_engines(step)
        if step < self.setup.last_step or self._evaluation.due(step):  # else nobody samples from the last version
            self.at(step, "publish")
            self.rollouts.publish(step)
        seconds = time.perf_counter() - self._step_began
        found = dict(metrics) | used | self.rollouts.seconds | {"step_seconds": seconds}
        # Engines that run ahead sample while the ranks learn: the whole step is theirs.
        sampling_s = found.get("rollout_seconds", 0.0) if self.setup.plan.takes_turns else seconds
        found["sampled_tokens_per_second"] = num_tokens / max(1e-9, sampling_s)
        found["learning_rate"] = self.policy.learning_rate(step)
        if self.devices.is_main:
            found["engine_restarts"] = float(self.rollouts.fleet.num_restarts)
        if self._is_first:
            found |= self.start.metrics(self._step_began, self.rollouts.seconds.get("rollout_seconds", 0.0))
        found = self.monitor.record(step, found, is_last=step == self.setup.last_step) | found
        found = {name: value for name, value in found.items() if math.isfinite(value)}
        while self.messages:
            self.recorder.message(self.messages.pop(0))
        self.state.step, self.state.blocks = step, self.rollouts.position
        for name in ("reward", "loss"):
            if name in found:
                self.state.metrics.setdefault(f"first_{name}", found[name])
                self.state.metrics[name] = found[name]
        if step % self.setup.config.training.metrics_every_steps == 0 or step == self.setup.last_step:
            self.recorder.step(step, found)
        self._evaluate(step)
        self._checkpoint(step)

    def _use_of_engines(self, step: int) -> dict[str, float]:
        """Rank 0's metrics of what engines and ranks had to do; moves engines where the job says so."""
        if not self.devices.is_main:
            return {}
        step_s, waited_s = time.perf_counter() - self._step_began, self.rollouts.seconds["rollout_seconds"]
        load, num_engines = self.rollouts.fleet.load(), self.rollouts.fleet.num_engines
        if self._allocation and step < self.setup.last_step:
            self._allocation.after_step(load, step_s, waited_s)
        return allocation.utilisation(load, num_engines, self.devices.world_size, step_s, waited_s)

    @functools.cached_property
    def _allocation(self) -> movers.Mover | None:
        return movers.mover(self.setup, self.rollouts.fleet, self.messages.append)

    def finish(self) -> TrainingResult:
        """Writes the policy to the artifact."""
        setup = self.setup
        self.liveness.at(self.state.step, "export")
        self._store.wait()
        supervised.save(self.policy.model, setup.place, setup.source, setup.tokenizer_folder, self.devices)
        kind = "adapter" if self.policy.model.is_adapter else "model"
        self.recorder.message(f"trained {self.state.step} steps; the {kind} is written")
        return TrainingResult(
            steps=self.state.step,
            adapter=self.policy.model.is_adapter,
            base_model=str(setup.source.base.absolute()),
            metrics=self.state.metrics,
            tokenizer_fingerprint=setup.tokenizer_fingerprint,
            data_fingerprint=setup.data_fingerprint,
        )

    def at(self, step: int, phase: str) -> None:
        """What this rank is at from now on."""
        self.liveness.at(step, phase)
        self.monitor.at(phase)

    @property
    def _models(self) -> nn.Module:
        if not self.learners:
            return self.policy.model
        return nn.ModuleDict({name: learner.model for name, learner in self._named_learners.items()})

    @property
    def _named_learners(self) -> dict[str, Learner]:
        return {"policy": self.policy} | self.learners

    @property
    def _optimizers(self) -> Sequence[torch.optim.Optimizer]:
        return [learner.optimizer for learner in self._named_learners.values()]

    @functools.cached_property
    def _evaluation(self) -> Evaluation:
        return Evaluation(self.measurements, self.setup.last_step, self.rollouts)

    def _evaluate(self, step: int) -> None:
        """Where it is due, measures the version that engines have."""
        if not self._evaluation.due(step):
            return
        self.at(step, "evaluation")
        found = {name: value for name, value in self._evaluation.run(step).items() if math.isfinite(value)}
        self.recorder.answers(step, found)
        if "reward" in found:
            self.state.metrics.setdefault("first_evaluation_reward", found["reward"])
            self.state.metrics["evaluation_reward"] = found["reward"]

    def _checkpoint(self, step: int) -> None:
        stop_reason = self.liveness.should_stop(self.devices)
        if self._store.due(step, self.setup.last_step) or stop_reason:
            self.at(step, "checkpoint")
            self.rollouts.settle()
            self._store.save(self._models, self._optimizers, self.state)
            self.monitor.saved(step)
        if stop_reason:
            self._store.wait()
            raise Preempted(step, stop_reason)
