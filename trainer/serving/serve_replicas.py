"""Replicas as Ray Serve applications: Serve places them on nodes with free GPUs, watches them, starts them again.

    gateway                          Ray
    ServeReplicas.start ---------->  Serve: applications VERSION-0, VERSION-1, ..., one replica each
                  .addresses <-----  Register <---- each replica says where its vLLM server listens, at every start
    Proxy -------------------------------------->  vLLM's OpenAI server of a replica

Requests go past Serve: its own ingress cost 12 ms an answer of 32 chunks and a factor of five with 64 clients at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from finecut.proto.run import node_roles, ray_nodes
from finecut.trainer.serving import inner_tls
from finecut.trainer.serving.replicas import Address
from finecut.trainer.serving.vllm_server import ServerError, ServerSettings, VllmServer

_POLL_S = 0.2
_HEALTH_PERIOD_S = 2.0
_HEALTH_TIMEOUT_S = 10.0
# A replica works where there are cores: not on the head of a cluster, which has none.
_CPUS = 0.001
# vLLM's own processes get this long after SIGTERM and again after SIGKILL.
_STOP_S = 35.0


class Register:
    """An actor that knows where the servers of applications listen, and why some did not start."""

    def __init__(self) -> None:
        self._addresses: dict[str, Address] = {}
        self._failures: dict[str, str] = {}

    def listens(self, application: str, address: Address) -> None:
        """Its server answers."""
        self._addresses[application] = address

    def failed(self, application: str, reason: str) -> None:
        """Its server did not start."""
        self._failures[application] = reason

    def seen(self, applications: Sequence[str]) -> tuple[list[Address | None], list[str]]:
        """Addresses in this order, and reasons of failures."""
        failures = [self._failures[name] for name in applications if name in self._failures]
        return [self._addresses.get(name) for name in applications], failures

    def forget(self, applications: Sequence[str]) -> None:
        """They are gone."""
        for name in applications:
            self._addresses.pop(name, None)
            self._failures.pop(name, None)


class ModelReplica:
    """One vLLM server beside its Serve replica, which lives as long as the server answers."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, server: type[VllmServer], settings: ServerSettings, key: str, log: Path, application: str, register: Any
    ) -> None:
        host, gpus = ray.util.get_node_ip_address(), [int(gpu) for gpu in ray.get_gpu_ids()]
        self._server = await server.start(settings, gpus, log, host, key, inner_tls.of_this_node())
        try:
            await self._server.wait_ready()
        except ServerError as error:
            await register.failed.remote(application, str(error))
            raise
        await register.listens.remote(application, Address(self._server.url, self._server.process_id))

    async def check_health(self) -> None:
        """Serve calls it; a replica that raises is replaced."""
        if not await self._server.answers():
            raise RuntimeError("vLLM does not answer")

    async def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # the server did not start
            await self._server.stop()


class ServeReplicas:
    """A `Replicas` on the Ray that this process is connected to."""

    def __init__(self, endpoint: str, logs: Path, key: str, server: type[VllmServer] = VllmServer) -> None:
        """Starts Serve. `key`: what servers ask of their clients. `server`: of another kind in tests."""
        serve.start(proxy_location="Disabled")
        # Beside the gateway: with another node it would be lost, and no replica could say where it listens.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._register = ray.remote(num_cpus=0, scheduling_strategy=here)(Register).remote()
        self._endpoint, self._logs, self._key, self._server = endpoint, logs, key, server
        self._role = node_roles.asked(node_roles.SERVE, ray.cluster_resources())
        self._applications: dict[str, list[str]] = {}

    async def start(self, version: str, settings: ServerSettings, num_replicas: int, limit_s: float) -> None:
        """See `Replicas`."""
        names = [_application(self._endpoint, f"{version}-{number}") for number in range(num_replicas)]
        num_gpus = settings.tensor_parallel_size if "GPU" in ray.cluster_resources() else 0
        _require_gpus(num_replicas, num_gpus, self._role)
        self._applications[version] = names
        try:
            await asyncio.to_thread(self._deploy, names, settings, num_gpus)
            await asyncio.wait_for(self._wait(names), limit_s)
        except TimeoutError:
            await self.stop(version)
            raise ServerError(f"vLLM did not answer within {limit_s:.0f} s (logs: {self._logs})") from None
        except BaseException:
            await self.stop(version)
            raise

    async def addresses(self, version: str) -> list[Address]:
        """See `Replicas`."""
        found, _ = await self._register.seen.remote(self._applications.get(version, []))
        return [address for address in found if address]

    async def stop(self, version: str) -> None:
        """See `Replicas`."""
        names = self._applications.pop(version, [])
        await asyncio.gather(*(asyncio.to_thread(serve.delete, name) for name in names))
        await self._register.forget.remote(names)

    def _deploy(self, names: Sequence[str], settings: ServerSettings, num_gpus: int) -> None:
        replica = serve.deployment(
            ModelReplica,
            name="vllm",
            ray_actor_options={"num_cpus": _CPUS, "num_gpus": num_gpus, "resources": self._role},
            health_check_period_s=_HEALTH_PERIOD_S,
            health_check_timeout_s=_HEALTH_TIMEOUT_S,
            graceful_shutdown_timeout_s=_STOP_S,
            max_constructor_retry_count=1,  # the first failure is told
        )
        targets = [
            serve.RunTarget(
                replica.bind(self._server, settings, self._key, self._log_of(name), name, self._register),
                name=name,
                route_prefix=None,
            )
            for name in names
        ]
        serve.run_many(targets, wait_for_applications_running=False)

    def _log_of(self, application: str) -> Path:
        return self._logs / f"{application.removeprefix(_application(self._endpoint, ''))}.log"

    async def _wait(self, names: Sequence[str]) -> None:
        while True:
            addresses, failures = await self._register.seen.remote(names)
            if failures:
                raise ServerError(failures[0])
            # Serve looks once more when the server has told of itself; only a replica that passes is ever replaced.
            if all(addresses) and await asyncio.to_thread(_are_running, names):
                return
            await asyncio.sleep(_POLL_S)


def _are_running(applications: Sequence[str]) -> bool:
    """Whether Serve has them at work. Raises ServerError where it has given one up."""
    known = serve.status().applications
    found = [known[name].status for name in applications if name in known]
    if ApplicationStatus.DEPLOY_FAILED in found:
        raise ServerError("vLLM ended as soon as it had started")
    return found == [ApplicationStatus.RUNNING] * len(applications)


def end_left(endpoint: str) -> None:
    """Ends the replicas that an endpoint's process, which was killed, has left in the Ray of this process."""
    for name in serve.status().applications:
        if name.startswith(_application(endpoint, "")):
            serve.delete(name)


def _application(endpoint: str, replica: str) -> str:
    return f"{endpoint}:{replica}"


def _require_gpus(num_replicas: int, num_gpus: int, role: Mapping[str, float]) -> None:
    """Raises ServerError where nodes of the role have room for fewer replicas; each is on one node."""
    if not num_gpus:
        return
    room = node_roles.room(num_gpus, role, ray_nodes.free().values())
    if num_replicas > room:
        raise ServerError(
            f"there is room for {room} replicas of {num_gpus} GPUs beside the version before, not for {num_replicas};"
            " use fewer replicas"
        )
