"""Replicas without Ray in tests of the gateway: stand-in servers as children, started again when they are gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from finecut.trainer.serving.replicas import Address
from finecut.trainer.serving.testing_server import StandInServer
from finecut.trainer.serving.vllm_server import ServerError, ServerSettings


class LocalReplicas:
    """See `replicas.Replicas`."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._servers: dict[str, tuple[ServerSettings, list[StandInServer]]] = {}

    async def start(self, version: str, settings: ServerSettings, num_replicas: int, limit_s: float) -> None:
        """Starts all."""
        servers = [await self._start(version, settings) for _ in range(num_replicas)]
        self._servers[version] = (settings, servers)
        try:
            await asyncio.wait_for(asyncio.gather(*(server.wait_ready() for server in servers)), limit_s)
        except ServerError:
            await self.stop(version)
            raise

    async def addresses(self, version: str) -> list[Address]:
        """Of all, dead ones replaced."""
        if version not in self._servers:
            return []
        settings, servers = self._servers[version]
        for number, server in enumerate(servers):
            if not server.is_alive:
                servers[number] = await self._start(version, settings)
        return [Address(server.url, server.process_id) for server in servers]

    async def stop(self, version: str) -> None:
        """Ends them."""
        _, servers = self._servers.pop(version, (None, []))
        await asyncio.gather(*(server.stop() for server in servers))

    async def _start(self, version: str, settings: ServerSettings) -> StandInServer:
        return await StandInServer.start(settings, [], self._logs / f"{version}.log")
