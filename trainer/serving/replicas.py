"""What the gateway asks of whatever runs a model's servers: Ray Serve (`serve_replicas`), or a stand-in in tests."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from finecut.trainer.serving.vllm_server import ServerSettings


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a replica's server listens, and its process on that machine, which leads a group of its own."""

    url: str
    process_id: int


class Replicas(Protocol):
    """Starts replicas by version, starts those again that die, and ends them."""

    async def start(self, version: str, settings: ServerSettings, num_replicas: int, limit_s: float) -> None:
        """Returns when all answer. Raises ServerError, and leaves nothing then."""

    async def addresses(self, version: str) -> list[Address]:
        """Of each replica, in a fixed order; another one once it was started again."""

    async def stop(self, version: str) -> None:
        """Ends a version's replicas; nothing where there are none."""
