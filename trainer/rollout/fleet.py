"""Several engines that answer as one, and outlive the death of any of them.

    generate(prompts)  consumes: prompts; produces: their samples, in the order of prompts, whatever finished first
        | one task a sample (`episode.play`)
        v
    ask                consumes: a request; waits for: an engine's answer; produces: a generation
        | Balancer picks the engine            | the engine dies: revive, ask again with the same seed
        v                                      v
    Engine actor x N                         revive    restarts the engine, once for all that wait for it, and has the
                                                       trainer send it the weights; unblocks them

A request counts when its answer has arrived, and an answer arrives once: what a dead engine was doing is lost and done
again, never counted twice.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from finecut.proto.config import UserError
from finecut.trainer.rollout import engine_group, episode
from finecut.trainer.rollout.balancing import Balancer, Load
from finecut.trainer.rollout.engine_config import EngineConfig, EngineDiedError, EngineStatus, Generation, Request
from finecut.trainer.rollout.engine_group import RayEngines
from finecut.trainer.rollout.engine_pool import EnginePool, FleetConfig
from finecut.trainer.rollout.episode import Prompt, Turns
from finecut.trainer.rollout.sample import Sample
from finecut.trainer.rollout.sampling import SamplingParameters, sample_seed

_LEAVING_POLL_S = 0.1


@dataclasses.dataclass
class _Batch:
    """One call of `generate`."""

    number: int
    records: set[str]
    # Names of requests that an engine is working on.
    in_flight: set[str] = dataclasses.field(default_factory=set)

    def key(self, name: str) -> str:
        """A name that no other batch has."""
        return f"{name}#{self.number}"


class Fleet:
    """Starts the engines, gives them prompts and brings dead ones back. Ray must be initialised.
    Not for several threads at once, but `begin` returns at once, and the trainer may send weights meanwhile.
    """

    def __init__(
        self,
        config: FleetConfig,
        resync: Callable[[RayEngines], None] | None = None,
        on_message: Callable[[str], None] = lambda message: None,
    ) -> None:
        """Starts all engines and waits until they can be used.

        Args:
          resync: makes the trainer meet these engines anew and send them its present weights. Called, in a thread,
            after an engine was restarted; without it a restarted engine has the weights of the model's folder, so
            that a fleet whose weights have changed cannot lose an engine.
          on_message: takes plain sentences for the event log.
        """
        self._config = config
        self._pool = EnginePool(config)
        self._resync = resync
        self._on_message = on_message
        self._balancer = Balancer(config.num_engines)
        self._batch_numbers = itertools.count(1)
        # By the engine's number; engines that leave keep theirs for those that come.
        self._lives: dict[int, int] = collections.defaultdict(int)
        # Cleared while an engine was started and has not got its weights yet.
        self._usable: dict[int, asyncio.Event] = collections.defaultdict(asyncio.Event)
        self._leaving: dict[int, Future[None]] = {}
        self._num_restarts = 0
        self._newest_version = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fleet", daemon=True)
        self._thread.start()
        self._reviving = asyncio.Lock()
        try:
            self._handles = [self._pool.start(number, config.engine) for number in range(config.num_engines)]
            self._pool.wait_until_ready(self._handles)
            self.admit()
        except BaseException:
            self.shut_down()
            raise

    @property
    def engines(self) -> RayEngines:
        """The engines as the trainer's WeightSync wants them. Other ones after a restart."""
        return RayEngines(tuple(self._handles), (self._config.engine.tensor_parallel_size,) * len(self._handles))

    @property
    def num_engines(self) -> int:
        """Those that get requests."""
        return len(self._handles)

    @property
    def num_restarts(self) -> int:
        """Engines that were brought back so far."""
        return self._num_restarts

    def generate(
        self,
        prompts: Sequence[Prompt],
        num_samples: int,
        sampling: SamplingParameters,
        policy_version: int,
        turns: Turns | None = None,
    ) -> list[Sample]:
        """Samples of each prompt, all of the first one's first.

        Args:
          num_samples: answers to each prompt.
          policy_version: that the seeds are made of; the version that samples is in each `Sample`.
          turns: a conversation with an environment instead of one answer.

        Raises:
          UserError: Nothing to do, a prompt that does not fit, two prompts of one record, user code that fails.
          EngineDiedError: Engines died more often than `max_restarts`.
        """
        return self.begin(prompts, num_samples, sampling, policy_version, turns).result()

    def begin(
        self,
        prompts: Sequence[Prompt],
        num_samples: int,
        sampling: SamplingParameters,
        policy_version: int,
        turns: Turns | None = None,
    ) -> Future[list[Sample]]:
        """As `generate`, without waiting."""
        if not prompts or num_samples < 1:
            raise UserError("an empty rollout: there are no prompts to sample answers to; check the data's split")
        if len({prompt.record_id for prompt in prompts}) < len(prompts):
            raise UserError("a rollout has two prompts of one record; each record may come once a batch")
        episode.check_lengths(prompts, sampling, self._config.engine.max_sequence_tokens)
        batch = _Batch(next(self._batch_numbers), {prompt.record_id for prompt in prompts})
        plays = [
            episode.play(
                prompt,
                index,
                sample_seed(self._config.run_seed, policy_version, prompt.record_id, index),
                sampling,
                functools.partial(self._ask, batch),
                turns,
            )
            for prompt in prompts
            for index in range(num_samples)
        ]
        return asyncio.run_coroutine_threadsafe(self._all(plays, batch), self._loop)

    def heal(self, resync: bool) -> Future[None]:
        """Brings back engines that died while nothing was asked of them. `resync`: and has the trainer send weights."""
        return asyncio.run_coroutine_threadsafe(self._heal(resync), self._loop)

    def status(self) -> list[EngineStatus]:
        """Where each engine stands."""
        return engine_group.get([handle.status.remote() for handle in self._handles])

    def checksums(self) -> list[dict[str, int]]:
        """The checksums of each engine's weights, by Hugging Face's tensor names."""
        return engine_group.get([handle.checksums.remote() for handle in self._handles])

    def sleep(self) -> None:
        """Colocated: gives the engines' memory to the trainer."""
        self.engines.call("sleep")

    def wake(self) -> None:
        """Colocated: takes the memory of the weights back. Then the trainer sends them, and only then they sample."""
        self.engines.call("wake")

    def has_room(self, num_engines: int) -> bool:
        """Whether the cluster has room for so many; it is asked for what is missing, and not for more than that."""
        now = len(self._handles)
        for number in range(now, num_engines):
            if leaving := self._leaving.pop(number, None):
                leaving.result()
        return self._pool.has_room(now, num_engines)

    def resize(self, num_engines: int) -> None:
        """Starts engines, or lets the last ones go once they have answered what they were asked; nothing is lost.

        New ones have room already (`has_room`), and are asked once they have weights: `admit` them then. Waits until
        they have started. Raises UserError where another is being restarted; then all is as before.
        """
        now = len(self._handles)
        if self._reviving.locked():
            raise UserError("an engine is being restarted")
        if num_engines < now:
            asyncio.run_coroutine_threadsafe(self._dismiss(num_engines), self._loop).result()
            return
        self._pool.take()
        started = [self._pool.start(number, self._without_weights) for number in range(now, num_engines)]
        self._pool.wait_until_ready(started)
        asyncio.run_coroutine_threadsafe(self._welcome(started), self._loop).result()

    def admit(self) -> None:
        """All engines have weights and may be asked."""
        for number in range(len(self._handles)):
            self._loop.call_soon_threadsafe(self._usable[number].set)

    def load(self) -> Load:
        """What engines had to do since the last call."""

        async def load() -> Load:
            return self._balancer.load()

        return asyncio.run_coroutine_threadsafe(load(), self._loop).result()

    def shut_down(self) -> None:
        """Ends the engines, at once."""
        self._pool.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _all(self, plays: list[Coroutine[Any, Any, Sample]], batch: _Batch) -> list[Sample]:
        """Runs all; the first failure ends the others."""
        tasks = [asyncio.ensure_future(play) for play in plays]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            aborts = [handle.abort.remote(sorted(batch.in_flight)) for handle in self._handles]
            await asyncio.gather(*aborts, return_exceptions=True)
            raise
        finally:
            self._balancer.forget({batch.key(record) for record in batch.records})

    async def _ask(self, batch: _Batch, request: Request) -> Generation:
        """An answer from whichever engine; asks again where one dies."""
        num_tokens = len(request.prompt_ids) + request.sampling.max_new_tokens
        record = request.request_id.rsplit("/", 2)[0]
        # The same record can be in flight in two batches, the later one for the next step.
        request = dataclasses.replace(request, request_id=batch.key(request.request_id))
        batch.in_flight.add(request.request_id)
        while True:
            number = self._balancer.take(batch.key(record), num_tokens)
            await self._usable[number].wait()
            life = self._lives[number]
            try:
                generation: Generation = await self._handle(number).generate.remote(request)
                batch.in_flight.remove(request.request_id)
                self._newest_version = max(self._newest_version, *generation.policy_versions)
                return generation
            except RayActorError:
                await self._revive(number, life, "its process crashed or was killed")
            except RayTaskError as error:
                plain = engine_group.plain_error(error)
                if not isinstance(plain, EngineDiedError):
                    raise plain from None
                await self._revive(number, life, str(plain))
            finally:
                self._balancer.done(number, num_tokens)

    def _handle(self, number: int) -> Any:
        """Of an engine; of any other where it has left meanwhile."""
        return self._handles[min(number, len(self._handles) - 1)]

    async def _welcome(self, started: list[Any]) -> None:
        for number, handle in enumerate(started, len(self._handles)):
            self._usable[number].clear()
            self._lives[number] += 1
            self._handles.append(handle)
        self._balancer.resize(len(self._handles))

    async def _dismiss(self, num_left: int) -> None:
        leaving = range(num_left, len(self._handles))
        self._balancer.resize(num_left)
        del self._handles[num_left:]
        for number in leaving:
            self._leaving[number] = asyncio.run_coroutine_threadsafe(self._leave(number), self._loop)

    async def _leave(self, number: int) -> None:
        """Ends an engine once it has answered everything."""
        while self._balancer.outstanding(number):
            await asyncio.sleep(_LEAVING_POLL_S)
        self._pool.end(number)

    @property
    def _without_weights(self) -> EngineConfig:
        """The folder's weights may be old by now: the engine refuses to sample until the trainer has sent its own."""
        engine = self._config.engine
        return engine if engine.adapter_rank else dataclasses.replace(engine, load_weights=False)

    async def _heal(self, resync: bool) -> None:
        for number, handle in enumerate(list(self._handles)):
            life = self._lives[number]
            try:
                await handle.status.remote()
            except RayActorError:
                await self._revive(number, life, "its process crashed or was killed", resync)

    async def _revive(self, number: int, life: int, reason: str, resync: bool = True) -> None:
        """Restarts an engine unless somebody has since it died."""
        async with self._reviving:
            if self._lives[number] != life or number >= len(self._handles):
                return
            if self._num_restarts == self._config.max_restarts:
                raise EngineDiedError(
                    f"rollout engine {number} died ({reason}) after {self._num_restarts} restarts of engines; see its "
                    "log in Ray's session folder, and the system log for the OOM killer"
                )
            self._num_restarts += 1
            self._on_message(f"rollout engine {number} died ({reason}); it is restarted and its samples are redone")
            self._usable[number].clear()
            try:
                await asyncio.to_thread(self._restart, number, resync)
            finally:
                self._lives[number] += 1
                self._usable[number].set()

    def _restart(self, number: int, resync: bool) -> None:
        if self._resync is None and self._newest_version:
            raise EngineDiedError(
                f"rollout engine {number} died, and nobody can send a new one the weights of policy version "
                f"{self._newest_version}"
            )
        config = self._without_weights if self._resync else self._config.engine
        self._handles[number] = self._pool.start(number, config)
        self._pool.wait_until_ready([self._handles[number]])
        if self._resync and resync:
            self._resync(self.engines)
