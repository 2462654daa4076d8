"""A version of an endpoint's model: its replicas, their health, and the requests that they have."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from finecut.trainer.serving.vllm_server import ServerError, ServerSettings, VllmServer

_HEALTH_TIMEOUT = aiohttp.ClientTimeout(total=2.0)
_MAX_MISSES = 2  # health checks in a row; with a second between them, a hang is seen after six


class Replica:
    """One server with what is known of it."""

    def __init__(self, server: VllmServer) -> None:
        self.server = server
        self.num_running = 0
        self._misses = 0

    @classmethod
    def starting(cls, server: VllmServer) -> Replica:
        """One that gets no request before it has answered once."""
        replica = cls(server)
        replica._misses = _MAX_MISSES
        return replica

    @property
    def is_healthy(self) -> bool:
        return self.server.is_alive and self._misses < _MAX_MISSES

    async def check(self, session: aiohttp.ClientSession) -> None:
        """Asks it how it is."""
        answered = False
        with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError):
            async with session.get(f"{self.server.url}/health", timeout=_HEALTH_TIMEOUT) as response:
                answered = response.status == 200
        self._misses = 0 if answered else self._misses + 1


class Version:
    """Replicas of one model."""

    def __init__(self, name: str, settings: ServerSettings, replicas: Sequence[Replica]) -> None:
        self.name = name
        self.settings = settings
        self.replicas = list(replicas)

    @classmethod
    async def start(
        cls, name: str, settings: ServerSettings, gpus: Sequence[Sequence[int]], logs: Path, limit_s: float
    ) -> Version:
        """Starts a replica for each set of GPUs and waits until all answer. Raises ServerError."""
        replicas = [
            Replica.starting(await VllmServer.start(settings, ids, logs / f"{name}-{number}.log"))
            for number, ids in enumerate(gpus)
        ]
        version = cls(name, settings, replicas)
        try:
            await asyncio.wait_for(version._wait_ready(), limit_s)
        except TimeoutError:
            await version.stop()
            raise ServerError(f"vLLM did not answer within {limit_s:.0f} s (logs: {logs})") from None
        except BaseException:
            await version.stop()
            raise
        return version

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
        """Looks at every replica."""
        await asyncio.gather(*(replica.check(session) for replica in self.replicas))

    async def drain(self, limit_s: float) -> None:
        """Waits for requests under way, then ends."""
        end = time.monotonic() + limit_s
        while self.num_running and time.monotonic() < end:
            await asyncio.sleep(0.05)
        await self.stop()

    async def stop(self) -> None:
        """Ends every replica."""
        await asyncio.gather(*(replica.server.stop() for replica in self.replicas))

    async def _wait_ready(self) -> None:
        async with aiohttp.ClientSession() as session:
            for replica in self.replicas:
                while True:
                    if not replica.server.is_alive:
                        raise replica.server.failure()
                    await replica.check(session)
                    if replica.is_healthy:
                        break
                    await asyncio.sleep(0.2)
