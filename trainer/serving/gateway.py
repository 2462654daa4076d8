"""An endpoint: OpenAI's API in front of the replicas of a model, which changes versions without losing a request.

    clients -> /v1/* -> Proxy -> replicas (vLLM's own servers)
    deployer -> /finecut/versions -> start -> compare -> 5% -> 50% -> 100% -> the version before drains
                                       \\___________\\______\\____\\-> rolled back: it ends, the version before answers

Every second all replicas are looked at; a candidate that is not whole, or fails too often, is rolled back at once.
Replicas that are gone are started again by what runs them (see `replicas`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import ssl
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from finecut.trainer.serving import authentication, endpoints
from finecut.trainer.serving.proxy import Proxy, error_response
from finecut.trainer.serving.replicas import Replicas
from finecut.trainer.serving.rollout_plan import Canary, compare
from finecut.trainer.serving.traffic import Traffic
from finecut.trainer.serving.version import Version
from finecut.trainer.serving.vllm_server import ServerError, ServerSettings

_HEALTH_INTERVAL_S = 1.0
_DRAIN_S = 60.0


class _RolledBackError(Exception):
    """The candidate failed; the text says how."""


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may ask whom.

    Attributes:
      key: What clients must know; "": nothing.
      replica_key: What the replicas' servers ask of the gateway.
      replica_tls: Whom the gateway trusts to be a replica; None: connections to them are not encrypted.
    """

    key: str = ""
    replica_key: str = ""
    replica_tls: ssl.SSLContext | None = None


class Gateway:
    """The endpoint's state. `application` is its web application."""

    def __init__(
        self, name: str, folder: Path, layer: Replicas, access: Access, max_request_bytes: int, cluster: str = ""
    ) -> None:
        """`folder`: of its status. `cluster`: address of the Ray that the replicas are in; "": one of its own."""
        self._name = name
        self._folder = folder
        self._layer = layer
        self._access = access
        self._max_request_bytes = max_request_bytes
        self._cluster = cluster
        self._traffic = Traffic()
        self._versions: dict[str, Version] = {}
        self._rollout: asyncio.Task[None] | None = None
        self._report: dict[str, Any] = {}
        self._tell("empty", "", "no version was deployed yet")

    def application(self) -> web.Application:
        """Serves while it runs; ends all replicas when it ends."""
        authenticate = authentication.middleware(self._access.key)
        application = web.Application(client_max_size=self._max_request_bytes, middlewares=[authenticate])
        application.cleanup_ctx.append(self._running)
        application.router.add_get("/finecut/status", self._status)
        application.router.add_post("/finecut/versions", self._deploy)
        application.router.add_route("*", "/v1/{path:.*}", self._pass_on)
        application.router.add_get("/health", self._health)
        return application

    async def _running(self, application: web.Application) -> Any:
        tls = self._access.replica_tls or True
        connector = aiohttp.TCPConnector(limit=0, ssl=tls)  # no limit: vLLM queues by itself
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            self._proxy = Proxy(self._traffic, self._versions, self._session, self._access.replica_key)
            watch = asyncio.create_task(self._watch())
            yield
            for task in filter(None, (watch, self._rollout)):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await asyncio.gather(*(version.stop() for version in self._versions.values()))
            self._tell(endpoints.ENDED, "", "it was told to end")

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        return await self._proxy.handle(request)

    async def _health(self, request: web.Request) -> web.Response:
        stable = self._versions.get(self._traffic.stable or "")
        return web.Response(status=200 if stable and stable.choose() else 503)

    async def _status(self, request: web.Request) -> web.Response:
        versions = {
            name: {
                "replicas": len(version.replicas),
                "healthy": sum(replica.is_healthy for replica in version.replicas),
                "running": version.num_running,
                "processes": [replica.address.process_id for replica in version.replicas],
                "model": version.settings.adapter or version.settings.model,
            }
            for name, version in self._versions.items()
        }
        return web.json_response(self._summary() | {"folder": str(self._folder), "versions": versions})

    async def _deploy(self, request: web.Request) -> web.Response:
        """Begins a change of versions; `/finecut/status` tells how it goes."""
        fields = await request.json()
        name = fields["version"]
        if self._report["state"] in endpoints.CHANGING:
            return error_response(409, f"{self._name} is changing versions already; wait until it is done")
        if name == self._traffic.stable:
            return error_response(409, f"version {name} is deployed already")
        settings = ServerSettings(**fields["settings"])
        canary = Canary.from_json(fields["canary"]) if fields["canary"] else None
        self._tell("starting", name, f"version {name} is starting")
        version = Version(name, settings, self._layer)
        work = self._change(version, fields["replica_count"], canary, fields["start_limit_s"], self._rollout)
        self._rollout = asyncio.create_task(work)
        return web.json_response(self._report)

    async def _change(
        self, version: Version, num_replicas: int, canary: Canary | None, limit_s: float, earlier: asyncio.Task | None
    ) -> None:
        """`earlier`: the change before, which is decided; its loser may still have requests, and GPUs."""
        name = version.name
        if earlier is not None:
            await asyncio.gather(earlier, return_exceptions=True)
        try:
            await version.start(num_replicas, limit_s, self._session)
            self._versions[name] = version
            if self._traffic.stable is not None:
                await self._shift(name, canary)
        except (ServerError, _RolledBackError) as error:
            self._traffic.roll_back()
            state = "rolled_back" if isinstance(error, _RolledBackError) else "failed"
            self._tell(state, name, str(error))
            await self._end(name)
            return
        self._traffic.candidate = name
        replaced = self._traffic.promote()
        self._tell("serving", name, f"version {name} answers")
        if replaced:
            await self._versions[replaced].drain(_DRAIN_S)
            await self._end(replaced)

    async def _shift(self, name: str, canary: Canary | None) -> None:
        """Traffic moves to the candidate step by step. Raises _RolledBackError."""
        if canary is None:
            return
        stable = self._versions[self._traffic.stable or ""]
        self._traffic.begin(name, canary.max_error_fraction)
        if canary.prompts:
            self._tell(
                "shifting", name, f"version {name} is compared with {stable.name} on {len(canary.prompts)} prompts"
            )
            found = await compare(stable, self._versions[name], canary, self._session, self._access.replica_key)
            if problem := found.problem(canary.max_latency_ratio):
                raise _RolledBackError(problem)
        for share in canary.traffic_percent:
            self._traffic.share_percent = share
            self._tell("shifting", name, f"version {name} gets {share}% of requests")
            end = asyncio.get_running_loop().time() + canary.step_s
            while asyncio.get_running_loop().time() < end:
                self._require_sound(name)
                await asyncio.sleep(0.05)
            self._require_sound(name)

    def _require_sound(self, name: str) -> None:
        version = self._versions[name]
        if not version.is_whole:
            ill = sum(not replica.is_healthy for replica in version.replicas)
            # At once, before whoever waits for this task looks again.
            self._traffic.roll_back()
            raise _RolledBackError(f"{ill} of its {len(version.replicas)} replicas failed the health check")
        if failure := self._traffic.failure:
            raise _RolledBackError(failure)

    def _tell(self, state: str, version: str, message: str) -> None:
        """Sets the report, and leaves it where `endpoints.endpoints_of` reads it."""
        told = self._report["told"] if self._report.get("version") == version else []
        self._report = {"state": state, "version": version, "message": message, "told": [*told, message]}
        endpoints.write_status(self._folder, self._summary())

    def _summary(self) -> dict[str, Any]:
        traffic = self._traffic
        return self._report | {
            "endpoint": self._name,
            "cluster": self._cluster,
            "process_id": os.getpid(),
            "stable": traffic.stable,
            "candidate": traffic.candidate,
            "share_percent": traffic.share_percent,
        }

    async def _end(self, name: str) -> None:
        if version := self._versions.pop(name, None):
            await version.stop()

    async def _watch(self) -> None:
        while True:
            versions = list(self._versions.values())
            await asyncio.gather(*(version.check(self._session) for version in versions))
            await asyncio.sleep(_HEALTH_INTERVAL_S)
