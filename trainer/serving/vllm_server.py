"""One replica: vLLM's own OpenAI-compatible server as a child process, on a port of this node."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import aiohttp

from finecut.trainer.serving.inner_tls import NodeTls

_LAST_LINES = 200  # of a log, in which the reason of a failure is looked for
_STOP_S = 15
_POLL_S = 0.2
_HEALTH_TIMEOUT = aiohttp.ClientTimeout(total=5.0)


class ServerError(Exception):
    """A replica that does not start; the text is for the user."""


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """What a replica serves. Plain values: they travel as JSON."""

    # Model folder; with an adapter, its base.
    model: str
    # Name that clients ask for.
    name: str
    adapter: str | None = None
    adapter_rank: int = 0
    tensor_parallel_size: int = 1
    # Longest prompt and answer together. None: the model's positions.
    max_sequence_tokens: int | None = None
    # See number_types.
    number_type: str = "bfloat16"
    # Share of each GPU's memory.
    gpu_memory_fraction: float = 0.9
    # Memory for keys and values on CPUs.
    cpu_cache_gib: int = 1
    # Compile the model first: minutes on CPUs, and what fast answers need on GPUs.
    compiled: bool = True


class VllmServer:
    """A started server. `wait_ready`, then requests; `stop` ends it. It ends with the process that started it."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: Path, tls: NodeTls | None = None) -> None:
        self._process = process
        self._log = log
        self._tls = tls.client_context() if tls else True
        self.url = url

    @classmethod
    async def start(
        cls,
        settings: ServerSettings,
        gpus: Sequence[int],
        log: Path,
        host: str = "127.0.0.1",
        key: str = "",
        tls: NodeTls | None = None,
    ) -> Self:
        """Returns at once; the model loads for seconds to minutes.

        `key`: what clients must know; "": nothing. `tls`: what it listens with; None: unencrypted.
        """
        port = free_port(host)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "finecut.trainer.serving.guard"),
                *cls.command(settings, host, port),
                *(tls.server_flags() if tls else ()),
                env=_environment(settings, gpus, host) | ({"VLLM_API_KEY": key} if key else {}),
                stdin=asyncio.subprocess.PIPE,  # it closes with this process, and vLLM's own processes end then
                stdout=file,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # a group of its own, which ends as one
            )
        return cls(process, f"{'https' if tls else 'http'}://{host}:{port}", log, tls)

    @staticmethod
    def command(settings: ServerSettings, host: str, port: int) -> list[str]:
        """The server's command line."""
        flags = {
            "model": settings.model,
            "host": host,
            "port": str(port),
            "dtype": settings.number_type,
            "tensor-parallel-size": str(settings.tensor_parallel_size),
            "served-model-name": settings.name,
            "gpu-memory-utilization": str(settings.gpu_memory_fraction),
        }
        if settings.max_sequence_tokens:
            flags["max-model-len"] = str(settings.max_sequence_tokens)
        if settings.adapter:
            # Clients ask for the adapter; the base answers to a name of its own.
            flags |= {"lora-modules": f"{settings.name}={settings.adapter}"}
            flags |= {"max-lora-rank": str(settings.adapter_rank), "served-model-name": f"{settings.name}-base"}
        arguments = [part for name, value in flags.items() for part in (f"--{name}", value)]
        switches = ["--enable-lora"] * bool(settings.adapter) + ["--enforce-eager"] * (not settings.compiled)
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments, *switches]

    async def wait_ready(self) -> None:
        """Returns when it answers. Raises ServerError where it ends instead."""
        while not await self.answers():
            if not self.is_alive:
                raise self.failure()
            await asyncio.sleep(_POLL_S)

    async def answers(self) -> bool:
        """Whether it says that it is well."""
        try:
            async with aiohttp.request("GET", f"{self.url}/health", timeout=_HEALTH_TIMEOUT, ssl=self._tls) as response:
                return response.status == 200
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False

    @property
    def process_id(self) -> int:
        """Also that of its process group."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs; it may not answer yet, or any more."""
        return self._process.returncode is None

    def failure(self) -> ServerError:
        """Why it is gone, from its log."""
        with contextlib.suppress(OSError):
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
            # Python's last exception, which is the one that ended it; earlier ones led to it.
            told = [line for line in lines if "Error: " in line and "Engine core initialization failed" not in line]
            if told:
                return ServerError(f"vLLM ended: {told[-1].rpartition('] ')[2].strip()} (log: {self._log})")
        return ServerError(f"vLLM ended with status {self._process.returncode} (log: {self._log})")

    async def stop(self) -> None:
        """Ends it and all that it started."""
        for number, patience in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), patience)
                return


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind((host, 0))
        return found.getsockname()[1]


def _environment(settings: ServerSettings, gpus: Sequence[int], host: str) -> dict[str, str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if gpus:
        return environment | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    return environment | {
        "VLLM_CPU_KVCACHE_SPACE": str(settings.cpu_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_HOST_IP": host,
    }
