"""What the endpoint of a deploy stage costs over its own vLLM server, and how fast it rolls back; with real vLLM.

Usage: bazel run //tools/bench:serving -- [--model=FOLDER] [--rounds=12] [--clients=16] [--tokens=64] [--singles=100]

The same server is asked through the endpoint and past it, in turns, so that a busy machine slows both alike. Prints a
JSON object: ratios of throughput, of whole answers and of streams, and differences of latency (medians, and the middle
half), what a killed candidate cost (--norollback: not tried, where a host has one GPU), and the processor time that a
chunk of a stream takes in the endpoint's process and in vLLM's own server, which a busy machine changes little.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from absl import app, flags

from finecut.proto.config import UserError
from finecut.trainer.evaluate.testing import make_job
from finecut.trainer.rollout.testing import write_tiny_policy
from finecut.trainer.serving import deploy
from finecut.trainer.serving.control import Control
from finecut.trainer.serving.vllm_server import free_port

_MODEL = flags.DEFINE_string("model", "", "Model folder. Unset: a random one of two layers.")
_ROUNDS = flags.DEFINE_integer("rounds", 12, "Turns of each path under load.", lower_bound=2)
_CLIENTS = flags.DEFINE_integer("clients", 16, "Clients at once.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("tokens", 64, "Tokens of an answer.", lower_bound=1)
_ROLLBACK = flags.DEFINE_bool("rollback", True, "Deploy another version, on further GPUs, and kill it.")
_SINGLES = flags.DEFINE_integer("singles", 100, "Requests of each path, one after the other.", lower_bound=2)

_CANARY = "canary { traffic_percent: 50 step_time { seconds: 3600 } max_latency_ratio: 1000 }"


class Way:
    """One way to the server."""

    def __init__(self, url: str, key: str, session: aiohttp.ClientSession) -> None:
        self._url, self._headers, self._session = url, {"Authorization": f"Bearer {key}"}, session

    async def ask(self, num_tokens: int) -> int:
        """An answer of exactly so many tokens; its status."""
        asked: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "How are you?"}]}
        asked |= {"max_tokens": num_tokens, "ignore_eos": True, "temperature": 0}
        url = f"{self._url}/v1/chat/completions"
        async with self._session.post(url, json=asked, headers=self._headers) as response:
            await response.read()
            return response.status

    async def stream(self, num_tokens: int) -> int:
        """The same in a stream; its chunks."""
        asked: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "How are you?"}]}
        asked |= {"max_tokens": num_tokens, "ignore_eos": True, "temperature": 0, "stream": True}
        url = f"{self._url}/v1/chat/completions"
        async with self._session.post(url, json=asked, headers=self._headers) as response:
            return (await response.read()).count(b"data: ")


async def processor_ms_a_chunk(served: Way, endpoint: int, server: int, num_clients: int) -> dict[str, float]:
    """Of the endpoint's process and of vLLM's server, without its engine, while so many clients get streams."""
    before = _processor_s(endpoint), _processor_s(server)
    chunks = sum(await asyncio.gather(*(served.stream(_TOKENS.value) for _ in range(num_clients))))
    used = _processor_s(endpoint) - before[0], _processor_s(server) - before[1]
    return {"endpoint": round(1e3 * used[0] / chunks, 3), "vllm_server": round(1e3 * used[1] / chunks, 3)}


async def seconds_under_load(path: Way, streams: bool) -> float:
    """All clients at once, four answers each."""

    async def client() -> None:
        for _ in range(4):
            if streams:
                assert await path.stream(_TOKENS.value) > 2  # tokens without text, and several at once, are one chunk
            else:
                assert await path.ask(_TOKENS.value) == 200

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(_CLIENTS.value)))
    return time.perf_counter() - start


async def seconds_alone(path: Way) -> float:
    """One answer of one token."""
    start = time.perf_counter()
    assert await path.ask(1) == 200
    return time.perf_counter() - start


async def compare(served: Way, bare: Way) -> dict[str, Any]:
    """Both paths in turns, the order changing."""
    for path in (served, bare):
        await seconds_under_load(path, streams=False)  # to be warm
    whole, streamed = [await throughput(served, bare, streams) for streams in (False, True)]
    differences = []
    for number in range(_SINGLES.value):
        found = {path: await seconds_alone(path) for path in _turns(served, bare, number)}
        differences.append(1e3 * (found[served] - found[bare]))
    return {
        "throughput": whole,
        "throughput_of_streams": streamed,
        "added_ms": _summary(differences),
    }


async def throughput(served: Way, bare: Way, streams: bool) -> dict[str, Any]:
    """Rounds of both paths: the endpoint's throughput over its server's, and what the server did by itself."""
    ratios, seconds = [], []
    for number in range(_ROUNDS.value):
        found = {path: await seconds_under_load(path, streams) for path in _turns(served, bare, number)}
        ratios.append(found[bare] / found[served])
        seconds.append(found[bare])
    tokens = 4 * _CLIENTS.value * _TOKENS.value
    return {"ratio": _summary(ratios), "bare_tokens_per_second": round(tokens / statistics.median(seconds))}


async def roll_back(control: Control, served: Way, candidate: asyncio.Future[Any]) -> dict[str, Any]:
    """Kills the candidate while it gets half of the requests; what became of them, and when it was gone."""
    statuses: list[int] = []
    ending = asyncio.Event()

    async def client() -> None:
        while not ending.is_set():
            statuses.append(await served.ask(8))

    clients = [asyncio.create_task(client()) for _ in range(4)]
    while (status := await asyncio.to_thread(control.status))["share_percent"] != 50:
        await asyncio.sleep(0.1)
    before = len(statuses)
    while len(statuses) < before + 40:
        await asyncio.sleep(0.05)
    [process] = status["versions"][status["candidate"]]["processes"]
    os.killpg(process, signal.SIGKILL)
    killed = time.perf_counter()
    while (await asyncio.to_thread(control.status))["candidate"]:
        await asyncio.sleep(0.02)
    seconds = time.perf_counter() - killed
    ending.set()
    await asyncio.gather(*clients)
    await asyncio.wait([candidate])
    lost = sum(status != 200 for status in statuses)
    return {"rollback_s": round(seconds, 2), "requests": len(statuses), "lost": lost}


async def measure(root: Path) -> dict[str, Any]:
    """Deploys, measures, deploys another version and kills it, and ends the endpoint."""
    port = free_port()
    endpoint = (await asyncio.to_thread(deploy.run_deploy, _job(root, "first", "model", port, ""), "first")).endpoint
    control = Control("127.0.0.1", port)
    try:
        [process] = control.status()["versions"][endpoint.version]["processes"]
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
            served, bare = Way(control.address, "", session), Way(*_server(process), session)
            found = await compare(served, bare)
            found["processor_ms_a_chunk"] = {
                num_clients: await processor_ms_a_chunk(served, endpoint.process_id, _guarded(process), num_clients)
                for num_clients in (8, 64)
            }
            if not _ROLLBACK.value:
                return found
            second = asyncio.get_running_loop().run_in_executor(None, _deploy_second, root, port)
            return found | await roll_back(control, served, second)
    finally:
        os.kill(endpoint.process_id, signal.SIGTERM)
        while os.path.exists(f"/proc/{endpoint.process_id}"):
            await asyncio.sleep(0.2)


def main(arguments: Sequence[str]) -> None:
    """Measures, and prints the result."""
    with tempfile.TemporaryDirectory(prefix="finecut-bench-") as folder:
        root = Path(folder)
        if _MODEL.value:
            (root / "model").symlink_to(Path(_MODEL.value).absolute())
        else:
            write_tiny_policy(root / "model")
        (root / "other").symlink_to(root / "model")
        load = os.getloadavg()[0]
        result = asyncio.run(measure(root)) | {"clients": _CLIENTS.value, "tokens": _TOKENS.value}
    json.dump(result | {"load": [round(load, 1), round(os.getloadavg()[0], 1)]}, sys.stdout, indent=2)
    print()


def _deploy_second(root: Path, port: int) -> None:
    try:
        deploy.run_deploy(_job(root, "second", "other", port, _CANARY), "second")
    except UserError as error:
        assert "rolled back" in str(error), error


def _job(root: Path, stage: str, model: str, port: int, canary: str) -> Any:
    work = f'deploy {{ model: "ROOT/{model}" endpoint: "chat" port: {port} {canary} }}'
    return make_job(root, f'stages {{ name: "{stage}" {work} }}')


def _server(process: int) -> tuple[str, str]:
    """Address and key of the replica's own server, as only this user can read them."""
    arguments = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    environment = dict(pair.split("=", 1) for pair in Path(f"/proc/{process}/environ").read_text().split("\0") if pair)
    host, port = (arguments[arguments.index(flag) + 1] for flag in ("--host", "--port"))
    return f"http://{host}:{port}", environment["VLLM_API_KEY"]


def _guarded(process: int) -> int:
    """The server that a guard runs beside its watcher (see serving/guard.py)."""
    _, server = map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    return server


def _processor_s(process: int) -> float:
    """Processor time of a process so far; not of its children."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _turns(served: Way, bare: Way, number: int) -> tuple[Way, Way]:
    return (served, bare) if number % 2 else (bare, served)


def _summary(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 3), "from": round(low, 3), "to": round(high, 3)}


if __name__ == "__main__":
    app.run(main)
