"""A version of an endpoint's model: its replicas, their health, and the requests that they have."""

from __future__ import annotations

import asyncio
import time

import aiohttp

from finecut.trainer.serving.replicas import Address, Replicas
from finecut.trainer.serving.vllm_server import ServerSettings

_HEALTH_TIMEOUT = aiohttp.ClientTimeout(total=2.0)
_MAX_MISSES = 2  # health checks in a row; with a second between them, a hang is seen after six


class Replica:
    """One server with what is known of it."""

    def __init__(self, address: Address) -> None:
        """It gets no request before it has answered a health check."""
        self.address = address
        self.num_running = 0
        self._misses = _MAX_MISSES

    @property
    def is_healthy(self) -> bool:
        return self._misses < _MAX_MISSES

    def lost(self) -> None:
        """Nobody listens there any more."""
        self._misses = _MAX_MISSES

    async def check(self, session: aiohttp.ClientSession) -> None:
        """Asks it how it is."""
        try:
            async with session.get(f"{self.address.url}/health", timeout=_HEALTH_TIMEOUT) as response:
                self._misses = 0 if response.status == 200 else self._misses + 1
        except aiohttp.ClientConnectorError:
            self.lost()
        except (TimeoutError, aiohttp.ClientError, OSError):
            self._misses += 1


class Version:
    """Replicas of one model."""

    def __init__(self, name: str, settings: ServerSettings, layer: Replicas) -> None:
        self.name = name
        self.settings = settings
        self.replicas: list[Replica] = []
        self._layer = layer

    async def start(self, num_replicas: int, limit_s: float, session: aiohttp.ClientSession) -> None:
        """Returns when all replicas answer. Raises ServerError."""
        await self._layer.start(self.name, self.settings, num_replicas, limit_s)
        await self.check(session)
        while not self.is_whole:  # it answered a moment ago
            await asyncio.sleep(0.1)
            await self.check(session)

    @property
    def is_whole(self) -> bool:
        """Whether every replica is healthy."""
        return all(replica.is_healthy for replica in self.replicas)

    @property
    def num_running(self) -> int:
        """Requests under way."""
        return sum(replica.num_running for replica in self.replicas)

    def choose(self) -> Replica | None:
        """The healthy replica with the fewest requests."""
        healthy = [replica for replica in self.replicas if replica.is_healthy]
        return min(healthy, key=lambda replica: replica.num_running, default=None)

    async def check(self, session: aiohttp.ClientSession) -> None:
        """Looks at every replica, at those that were started again too."""
        known = {replica.address: replica for replica in self.replicas}
        self.replicas = [known.get(address) or Replica(address) for address in await self._layer.addresses(self.name)]
        await asyncio.gather(*(replica.check(session) for replica in self.replicas))

    async def drain(self, limit_s: float) -> None:
        """Waits for requests under way."""
        end = time.monotonic() + limit_s
        while self.num_running and time.monotonic() < end:
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Ends every replica."""
        await self._layer.stop(self.name)
