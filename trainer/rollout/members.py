"""The engines of a fleet: who is there, who is brought back, who comes and who leaves.

revive    consumes: an engine that died; waits for: a new one, and for the trainer to send it the weights
          unblocks: all that wait until it is usable; once for all of them
resize    starts engines that `admit` lets be asked, or lets the last ones go once they have answered everything
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ray.exceptions import RayActorError

from finecut.proto.config import UserError
from finecut.trainer.rollout.balancing import Balancer
from finecut.trainer.rollout.engine_config import EngineConfig, EngineDiedError
from finecut.trainer.rollout.engine_group import RayEngines
from finecut.trainer.rollout.engine_pool import EnginePool, FleetConfig

_LEAVING_POLL_S = 0.1


class Members:
    """Engines by number. Coroutines run on the fleet's event loop; the other methods in its caller's thread.

    Attributes:
      handles: Ray's, of those that get requests. Another one after a restart.
      num_restarts: Engines that were brought back so far.
      newest_version: Of the policy, that an answer came from; told by who asks.
    """

    def __init__(
        self,
        config: FleetConfig,
        balancer: Balancer,
        loop: asyncio.AbstractEventLoop,
        resync: Callable[[RayEngines], None] | None,
        on_message: Callable[[str], None],
    ) -> None:
        """Starts nothing yet. See Fleet for `resync` and `on_message`."""
        self.handles: list[Any] = []
        self.num_restarts = 0
        self.newest_version = 0
        self._config = config
        self._balancer = balancer
        self._loop = loop
        self._resync = resync
        self._on_message = on_message
        self._pool = EnginePool(config)
        # By the engine's number; engines that leave keep theirs for those that come.
        self._lives: dict[int, int] = collections.defaultdict(int)
        # Cleared while an engine was started and has not got its weights yet.
        self._usable: dict[int, asyncio.Event] = collections.defaultdict(asyncio.Event)
        self._leaving: dict[int, Future[None]] = {}
        self._reviving = asyncio.Lock()

    def start(self) -> None:
        """All of them, and waits until they can be used."""
        self.handles = [self._pool.start(number, self._config.engine) for number in range(self._config.num_engines)]
        self._pool.wait_until_ready(self.handles)
        self.admit()

    @property
    def engines(self) -> RayEngines:
        """As the trainer's WeightSync wants them."""
        return RayEngines(tuple(self.handles), (self._config.engine.tensor_parallel_size,) * len(self.handles))

    async def usable(self, number: int) -> int:
        """Waits until an engine may be asked; returns which of its lives it is in."""
        await self._usable[number].wait()
        return self._lives[number]

    def handle(self, number: int) -> Any:
        """Of an engine; of any other where it has left meanwhile."""
        return self.handles[min(number, len(self.handles) - 1)]

    def has_room(self, num_engines: int) -> bool:
        """Whether the cluster has room for so many; it is asked for what is missing, and not for more than that."""
        now = len(self.handles)
        for number in range(now, num_engines):
            if leaving := self._leaving.pop(number, None):
                leaving.result()
        return self._pool.has_room(now, num_engines)

    def resize(self, num_engines: int) -> None:
        """Starts engines, or lets the last ones go once they have answered what they were asked; nothing is lost.

        New ones have room already (`has_room`), and are asked once they have weights: `admit` them then. Waits until
        they have started. Raises UserError where another is being restarted; then all is as before.
        """
        now = len(self.handles)
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
        for number in range(len(self.handles)):
            self._loop.call_soon_threadsafe(self._usable[number].set)

    def close(self) -> None:
        """Ends them, at once."""
        self._pool.close()

    async def heal(self, resync: bool) -> None:
        """Brings back those that died while nothing was asked of them."""
        for number, handle in enumerate(list(self.handles)):
            life = self._lives[number]
            try:
                await handle.status.remote()
            except RayActorError:
                await self.revive(number, life, "its process crashed or was killed", resync)

    async def revive(self, number: int, life: int, reason: str, resync: bool = True) -> None:
        """Restarts an engine unless somebody has since it died."""
        async with self._reviving:
            if self._lives[number] != life or number >= len(self.handles):
                return
            if self.num_restarts == self._config.max_restarts:
                raise EngineDiedError(
                    f"rollout engine {number} died ({reason}) after {self.num_restarts} restarts of engines; see its "
                    "log in Ray's session folder, and the system log for the OOM killer"
                )
            self.num_restarts += 1
            self._on_message(f"rollout engine {number} died ({reason}); it is restarted and its samples are redone")
            self._usable[number].clear()
            try:
                await asyncio.to_thread(self._restart, number, resync)
            finally:
                self._lives[number] += 1
                self._usable[number].set()

    async def _welcome(self, started: list[Any]) -> None:
        for number, handle in enumerate(started, len(self.handles)):
            self._usable[number].clear()
            self._lives[number] += 1
            self.handles.append(handle)
        self._balancer.resize(len(self.handles))

    async def _dismiss(self, num_left: int) -> None:
        leaving = range(num_left, len(self.handles))
        self._balancer.resize(num_left)
        del self.handles[num_left:]
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

    def _restart(self, number: int, resync: bool) -> None:
        if self._resync is None and self.newest_version:
            raise EngineDiedError(
                f"rollout engine {number} died, and nobody can send a new one the weights of policy version "
                f"{self.newest_version}"
            )
        config = self._without_weights if self._resync else self._config.engine
        self.handles[number] = self._pool.start(number, config)
        self._pool.wait_until_ready([self.handles[number]])
        if self._resync and resync:
            self._resync(self.engines)
