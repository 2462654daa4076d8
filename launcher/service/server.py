"""The whole service: store, supervisor, gRPC server, metrics; from a config to a process that serves until a signal.

SIGTERM -> health says NOT_SERVING -> watches end -> launchers write checkpoints -> jobs go back to the queue
"""

import asyncio
import fcntl
import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from finecut.launcher.security import tls
from finecut.launcher.security.access import Directory, directory_of
from finecut.launcher.service import children
from finecut.launcher.service.hub import Hub
from finecut.launcher.service.jobs import Jobs
from finecut.launcher.service.metrics import Metrics
from finecut.launcher.service.running import Settings
from finecut.launcher.service.servicer import Servicer
from finecut.launcher.service.supervisor import Supervisor
from finecut.launcher.store.open import open_store
from finecut.launcher.store.store import JobStore
from finecut.proto import service_config_pb2, service_pb2
from finecut.proto.config import UserError

_log = logging.getLogger("finecut.service")
_NAME = service_pb2.DESCRIPTOR.services_by_name["JobService"].full_name
_THREADS = 16  # most of them wait for the store, which commits for several at once
_GRACE_SECONDS = 5.0  # for calls at work when the service stops
_MAX_CALLS = 4000  # at once, watches among them; more are refused with RESOURCE_EXHAUSTED


@dataclass(frozen=True)
class Endpoints:
    """Where a running service is reached: HOST:PORT, and the port of its metrics."""

    grpc: str
    metrics_port: int


@dataclass(frozen=True)
class Options:
    """What a test changes.

    Attributes:
      module: See children.Child.
      lease_seconds: See running.Settings.
    """

    module: str = children.MODULE
    lease_seconds: float = 30.0


def serve(
    config: service_config_pb2.ServiceConfig, ready: Callable[[Endpoints], None], options: Options | None = None
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
      config: With defaults and absolute paths.
      ready: Called once it answers.

    Raises:
      UserError: A config that cannot be served, a port in use, another service in the same folder.
      StoreUnavailableError: The store does not answer.
    """
    folder = Path(config.folder)
    directory = directory_of(config)
    with _owned(folder) as owner:
        store = open_store(config.store or f"sqlite:///{folder}/jobs.sqlite")
        try:
            store.disown(owner)  # an earlier process of ours; its launchers have ended with it
            asyncio.run(_serve(config, store, directory, owner, ready, options or Options()))
        finally:
            store.close()


async def _serve(
    config: service_config_pb2.ServiceConfig,
    store: JobStore,
    directory: Directory,
    owner: str,
    ready: Callable[[Endpoints], None],
    options: Options,
) -> None:
    folder, metrics, stop = Path(config.folder), Metrics(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    executor = ThreadPoolExecutor(_THREADS, "calls")
    hub = Hub(store, executor)
    supervisor = Supervisor(store, _settings(config, owner, options), metrics, hub.changed)

    def changed(job_id: str) -> None:
        hub.changed(job_id)
        supervisor.wake(job_id)

    jobs = Jobs(store, folder / "runs", changed)
    servicer = Servicer(jobs, store, hub, directory, metrics, executor)
    metrics.watch(store.count_by_state, lambda: hub.watcher_count)
    server, health_servicer = _grpc_server(servicer)
    port = _listen(server, config)
    metrics_port, stop_metrics = metrics.serve(config.metrics)
    await server.start()
    await health_servicer.set(_NAME, health_pb2.HealthCheckResponse.SERVING)
    work = threading.Thread(target=supervisor.run, name="supervisor")
    work.start()
    polling = asyncio.create_task(hub.poll())
    host = config.listen.rpartition(":")[0]
    _log.info("serving at %s:%d", host, port)
    ready(Endpoints(f"{host}:{port}", metrics_port))
    await stop.wait()
    _log.info("stopping")
    await health_servicer.enter_graceful_shutdown()
    servicer.stop_watches()
    supervisor.stop()
    await server.stop(_GRACE_SECONDS)
    await loop.run_in_executor(None, work.join)
    polling.cancel()
    stop_metrics()
    executor.shutdown()


def _grpc_server(servicer: Servicer) -> "tuple[grpc.aio.Server, health.aio.HealthServicer]":
    server = grpc.aio.server(maximum_concurrent_rpcs=_MAX_CALLS, options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((servicer.handler(),))
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    names = (_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return server, health_servicer


def _listen(server: "grpc.aio.Server", config: service_config_pb2.ServiceConfig) -> int:
    try:
        if config.certificates:
            return server.add_secure_port(config.listen, tls.server_credentials(Path(config.certificates)))
        return server.add_insecure_port(config.listen)
    except RuntimeError:
        raise UserError(f"listen: cannot listen on {config.listen}; is another service there already?") from None


def _settings(config: service_config_pb2.ServiceConfig, owner: str, options: Options) -> Settings:
    return Settings(
        owner=owner,
        folder=Path(config.folder),
        max_running=config.max_running_jobs,
        max_running_of={
            principal.name: principal.max_running_jobs
            for principal in config.principals
            if principal.HasField("max_running_jobs")
        },
        lease_seconds=options.lease_seconds,
        module=options.module,
    )


@contextmanager
def _owned(folder: Path) -> Iterator[str]:
    """The name of the service that works in this folder, the only one while the block lasts."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / "service.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(f"folder: {error.filename} cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"folder: another service works in {folder}; stop it, or give this one its own") from None
        owner = os.pread(descriptor, 100, 0).decode() or f"service-{secrets.token_hex(8)}"
        os.pwrite(descriptor, owner.encode(), 0)
        yield owner
    finally:
        os.close(descriptor)
