"""Several engines that answer as one, and outlive the death of any of them.

    generate(prompts)  consumes: prompts; produces: their samples, in the order of prompts, whatever finished first
        | one task a sample (`episode.play`)
        v
    ask                consumes: a request; waits for: an engine's answer; produces: a generation
        | Balancer picks the engine            | the engine dies: revive, ask again with the same seed
        v                                      v
    Engine actor x N                         revive    see members.py

A request counts when its answer has arrived, and an answer arrives once: what a dead engine was doing is lost and done
again, never counted twice.
"""

from __future__ import annotations

import asyncio
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
from finecut.trainer.rollout.engine_config import EngineDiedError, EngineStatus, Generation, Request
from finecut.trainer.rollout.engine_group import RayEngines
from finecut.trainer.rollout.engine_pool import FleetConfig
from finecut.trainer.rollout.episode import Prompt, Turns
from finecut.trainer.rollout.members import Members
from finecut.trainer.rollout.sample import Sample
from finecut.trainer.rollout.sampling import SamplingParameters, sample_seed


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
        self._balancer = Balancer(config.num_engines)
        self._batch_numbers = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        self._members = Members(config, self._balancer, self._loop, resync, on_message)
        self._thread = threading.Thread(target=self._loop.run_forever, name="fleet", daemon=True)
        self._thread.start()
        try:
            self._members.start()
        except BaseException:
            self.shut_down()
            raise

    @property
    def engines(self) -> RayEngines:
        """The engines as the trainer's WeightSync wants them. Other ones after a restart."""
        return self._members.engines

    @property
    def num_engines(self) -> int:
        """Those that get requests."""
        return len(self._members.handles)

    @property
    def num_restarts(self) -> int:
        """Engines that were brought back so far."""
        return self._members.num_restarts

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
        return asyncio.run_coroutine_threadsafe(self._members.heal(resync), self._loop)

    def status(self) -> list[EngineStatus]:
        """Where each engine stands."""
        return engine_group.get([handle.status.remote() for handle in self._members.handles])

    def checksums(self) -> list[dict[str, int]]:
        """The checksums of each engine's weights, by Hugging Face's tensor names."""
        return engine_group.get([handle.checksums.remote() for handle in self._members.handles])

    def sleep(self) -> None:
        """Colocated: gives the engines' memory to the trainer."""
        self.engines.call("sleep")

    def wake(self) -> None:
        """Colocated: takes the memory of the weights back. Then the trainer sends them, and only then they sample."""
        self.engines.call("wake")

    def has_room(self, num_engines: int) -> bool:
        """Whether the cluster has room for so many; it is asked for what is missing, and not for more than that."""
        return self._members.has_room(num_engines)

    def resize(self, num_engines: int) -> None:
        """Starts engines, or lets the last ones go once they have answered what they were asked; nothing is lost.

        New ones have room already (`has_room`), and are asked once they have weights: `admit` them then. Waits until
        they have started. Raises UserError where another is being restarted; then all is as before.
        """
        self._members.resize(num_engines)

    def admit(self) -> None:
        """All engines have weights and may be asked."""
        self._members.admit()

    def load(self) -> Load:
        """What engines had to do since the last call."""

        async def load() -> Load:
            return self._balancer.load()

        return asyncio.run_coroutine_threadsafe(load(), self._loop).result()

    def shut_down(self) -> None:
        """Ends the engines, at once."""
        self._members.close()
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
            aborts = [handle.abort.remote(sorted(batch.in_flight)) for handle in self._members.handles]
            await asyncio.gather(*aborts, return_exceptions=True)
            raise
        finally:
            self._balancer.forget({batch.key(record) for record in batch.records})

    async def _ask(self, batch: _Batch, request: Request) -> Generation:
        """An answer from whichever engine; asks again where one dies."""
        members = self._members
        num_tokens = len(request.prompt_ids) + request.sampling.max_new_tokens
        record = request.request_id.rsplit("/", 2)[0]
        # The same record can be in flight in two batches, the later one for the next step.
        request = dataclasses.replace(request, request_id=batch.key(request.request_id))
        batch.in_flight.add(request.request_id)
        while True:
            number = self._balancer.take(batch.key(record), num_tokens)
            life = await members.usable(number)
            try:
                generation: Generation = await members.handle(number).generate.remote(request)
                batch.in_flight.remove(request.request_id)
                members.newest_version = max(members.newest_version, *generation.policy_versions)
                return generation
            except RayActorError:
                await members.revive(number, life, "its process crashed or was killed")
            except RayTaskError as error:
                plain = engine_group.plain_error(error)
                if not isinstance(plain, EngineDiedError):
                    raise plain from None
                await members.revive(number, life, str(plain))
            finally:
                self._balancer.done(number, num_tokens)
