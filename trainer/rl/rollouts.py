"""The trainer's end of the engines: prompts go in, samples come out, weights follow. Called on every rank alike.

    prompts[position]                                     weights of version v
         | begin, while may_start                              | publish(v)
         v                                                     v
    Batch in flight ----> Fleet (rank 0) ----> samples      Publisher (all ranks) ----> engines at v
         ^                   | an engine died                  ^
         |                   +---- resync, asked of all ranks -+
    collect(step)

    begin     consumes: prompts from the position; produces: a batch in flight; waits for: nothing; unblocks: collect
    collect   consumes: the oldest batch; produces: samples on every rank; waits for: the engines; unblocks: learning
    publish   consumes: the policy's weights; produces: engines at v; waits for: their checksums; unblocks: begin

Colocated engines have one batch, which begins after `publish`; engines of their own run up to max_staleness versions
ahead. Only rank 0 has the fleet. While it waits, the other ranks wait for its word: an engine that was restarted needs
the weights of all ranks.
"""

from __future__ import annotations

import collections
import dataclasses
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from finecut.proto.config import UserError
from finecut.trainer.rl.batches import Batch, Collected
from finecut.trainer.rl.publisher import Publisher
from finecut.trainer.rl.setup import RlSetup
from finecut.trainer.rollout import staleness
from finecut.trainer.rollout.config import RolloutConfig
from finecut.trainer.rollout.engine_group import RayEngines
from finecut.trainer.rollout.episode import Prompt
from finecut.trainer.rollout.fleet import Fleet
from finecut.trainer.rollout.sample import Sample
from finecut.trainer.rollout.sampling import SamplingParameters

T = TypeVar("T")

_RESYNC, _DONE = "resync", "done"


@dataclasses.dataclass(frozen=True)
class _Resync:
    """The fleet restarted an engine, whose thread waits until `served` is set."""

    engines: RayEngines
    served: threading.Event


class Rollouts:
    """Batches of samples by step. All methods are collective but `resync_from_thread`."""

    def __init__(self, setup: RlSetup, publisher: Publisher) -> None:
        self._config: RolloutConfig = setup.config.rollout
        self._group_size: int = setup.config.group_size
        self._prompts = setup.prompts
        self._takes_turns = setup.plan.takes_turns
        self._turns = setup.turns
        self._last_step = setup.last_step
        self._devices = setup.devices
        self._publisher = publisher
        self._fleet: Fleet | None = None
        self._is_resting = False
        self._events: queue.SimpleQueue[_Resync | Future[Any]] = queue.SimpleQueue()
        self._in_flight: collections.deque[Batch] = collections.deque()
        # Of the next prompt; the first step whose batch has not begun; the version that engines have.
        self.position = 0
        self._next_step = 1
        self.version = 0
        self.seconds: dict[str, float] = collections.defaultdict(float)

    @property
    def fleet(self) -> Fleet:
        """Rank 0's."""
        assert self._fleet is not None, "only rank 0 has the fleet"
        return self._fleet

    def prepare(self) -> None:
        """Works out what needs no engines, while they start."""
        self._publisher.prepare()

    def attach(self, fleet: Fleet | None) -> None:
        """Takes the fleet over, which only rank 0 has."""
        self._fleet = fleet

    def collect(self, step: int) -> Collected:
        """The samples of `step` (from 1), the same on every rank."""
        self._begin_allowed()
        batch = self._in_flight.popleft()
        samples = self._finished(batch)  # engines of their own go on with the next while this one is trained on
        staleness.check(samples, step - 1, self._config.max_staleness)
        return self._checked(batch.prompts, samples)

    def more(self, num_prompts: int, step: int) -> Collected:
        """Samples of the next prompts, in addition to those of `step`."""
        batch = self._begin(num_prompts, step)
        return self._checked(batch.prompts, self._finished(batch))

    def answer(
        self, prompts: Sequence[Prompt], sampling: SamplingParameters, version: int, takes_turns: bool
    ) -> Collected:
        """One answer, or conversation, to each prompt, from the weights that engines have; no batch is touched."""
        turns = self._turns if takes_turns else None
        future = self._fleet.begin(prompts, 1, sampling, version, turns) if self._fleet else None
        return Collected(list(prompts), self._serve(future))

    def settle(self) -> None:
        """Waits for what is in flight, so that a checkpoint can keep it."""
        for batch in self._in_flight:
            batch.samples = self._finished(batch)

    def engine_checksums(self) -> dict[str, int]:
        """Of the weights in the first engine that differs from the others, or else in the first. On every rank."""
        found: dict[str, int] = {}
        if self._is_resting:  # they have no weights now: what they had when they last confirmed them
            found = dict(self._publisher.checksums)
        elif self._fleet:
            of_engines = self._fleet.checksums()
            ours = dict(self._publisher.checksums)
            found = next((one for one in of_engines if one != ours), of_engines[0])
        return self._devices.from_main(found)

    def rest(self) -> None:
        """Engines that take turns with the trainer give their memory to it."""
        if self._takes_turns and self._fleet:
            self._fleet.sleep()
        self._is_resting = self._takes_turns

    def publish(self, version: int) -> None:
        """Sends the policy's weights to all engines, as `version`."""
        started = time.perf_counter()
        if self._devices.device.type == "cuda":
            torch.cuda.empty_cache()  # what is cached here is missing there
        self.version = version
        # Engines that take turns sleep, and cannot take weights yet.
        self._serve(self._fleet.heal(resync=not self._takes_turns) if self._fleet else None)
        if self._takes_turns and self._fleet:
            self._fleet.wake()
        self._is_resting = False
        self._publisher.send(version, self._fleet.engines if self._fleet else None)
        if self._fleet:
            self._fleet.admit()
        self.seconds["sync_seconds"] += time.perf_counter() - started

    def resync_from_thread(self, engines: RayEngines) -> None:
        """Has all ranks send their weights, and waits for it. The fleet calls it in a thread of its own."""
        request = _Resync(engines, threading.Event())
        self._events.put(request)
        request.served.wait()

    def capture(self) -> dict[str, Any]:
        """What a checkpoint keeps, after `settle`: the position, and samples that were not trained on yet."""
        return {
            "position": self.position,
            "next_step": self._next_step,
            "published": dict(self._publisher.published),
            "batches": [batch.to_plain() for batch in self._in_flight],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint; before anything has begun."""
        self.position, self._next_step = state["position"], state["next_step"]
        self._publisher.published = dict(state["published"])
        self._in_flight.extend(Batch.from_plain(fields, self._config.sampling) for fields in state["batches"])

    def _begin_allowed(self) -> None:
        """Begins every batch that may begin: one when engines take turns, as many as staleness allows when not."""
        ahead = 0 if self._takes_turns else self._config.max_staleness
        while self._next_step <= self._last_step and staleness.may_start(self._next_step - 1, self.version, ahead):
            self._in_flight.append(self._begin(self._config.prompts_per_step, self._next_step))
            self._next_step += 1

    def _begin(self, num_prompts: int, step: int) -> Batch:
        rows = self._prompts.take(self.position, num_prompts)
        # A record may come twice where epochs meet; its place in the stream tells the two apart.
        prompts = [
            Prompt(f"{row.record_id}#{self.position + number}", row.token_ids, row.record)
            for number, row in enumerate(rows)
        ]
        self.position += num_prompts
        batch = Batch(prompts)
        if self._fleet:
            batch.future = self._fleet.begin(prompts, self._group_size, self._config.sampling, step, self._turns)
        return batch

    def _finished(self, batch: Batch) -> list[Sample]:
        if batch.samples is None:
            started = time.perf_counter()
            batch.samples = self._serve(batch.future)
            self.seconds["rollout_seconds"] += time.perf_counter() - started
        return batch.samples

    def _checked(self, prompts: list[Prompt], samples: list[Sample]) -> Collected:
        """Samples of weights that the trainer sent; raises UserError for others."""
        if problem := self._publisher.problem(samples):
            raise UserError(problem)
        return Collected(prompts, samples)

    def _serve(self, future: Future[T] | None) -> T:
        """The result of rank 0's future, on every rank; meanwhile all ranks do what restarted engines need."""
        if future is not None:
            future.add_done_callback(self._events.put)
        while True:
            event = self._next_event(future) if self._devices.is_main else None
            kind, result = self._devices.from_main(
                (_RESYNC, None) if isinstance(event, _Resync) else (_DONE, event.result() if event else None)
            )
            if kind == _DONE:
                found: Any = result
                return found
            self._publisher.send(self.version, event.engines if isinstance(event, _Resync) else None)
            if isinstance(event, _Resync):
                event.served.set()

    def _next_event(self, future: Future[Any] | None) -> _Resync | Future[Any]:
        """The next thing to do; what other futures have to say waits until somebody asks for it."""
        while True:
            event = self._events.get()
            if isinstance(event, _Resync) or event is future:
                return event
