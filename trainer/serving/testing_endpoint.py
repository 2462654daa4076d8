"""A gateway on a port of this process, in a thread of its own, over stand-in servers; and what tests ask of it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from finecut.trainer.serving.gateway import Access, Gateway
from finecut.trainer.serving.rollout_plan import Canary
from finecut.trainer.serving.testing_replicas import LocalReplicas
from finecut.trainer.serving.vllm_server import ServerSettings, free_port

KEY = "a key of a test, long"
MAX_REQUEST_BYTES = 4096
# A machine may be ten times slower than the one that this was written on.
LIMIT_S = 240


@dataclasses.dataclass(frozen=True)
class Answered:
    """One request of `Endpoint.load`: its status, and the behaviour that answered, or the error."""

    status: int
    who: str


class Endpoint:
    """What is asked of a gateway."""

    def __init__(self, url: str) -> None:
        self.url = url

    def deploy(self, version: str, behaviour: str, canary: Canary | None = None, replica_count: int = 1) -> int:
        """Begins a change of versions; the answer's status."""
        asked = {
            "version": version,
            "settings": dataclasses.asdict(ServerSettings(behaviour, "chat")),
            "replica_count": replica_count,
            "canary": dataclasses.asdict(canary) if canary else None,
            "start_limit_s": LIMIT_S,
        }
        return self.request("/finecut/versions", asked)[0]

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        return self.request("/finecut/status")[1]

    def process(self, version: str) -> int:
        """Of a version's only replica."""
        [found] = self.status()["versions"][version]["processes"]
        return found

    def until(self, *states: str) -> dict[str, Any]:
        """Waits for one of these."""
        wait_until(lambda: self.status()["state"] in states)
        return self.status()

    def ask(self, text: str = "hello", key: str = KEY) -> tuple[int, Any]:
        """A chat completion."""
        return self.request("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}, key)

    def request(self, path: str, body: Any = None, key: str = KEY) -> tuple[int, Any]:
        """Status and JSON of an answer, errors too."""
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, {"Authorization": f"Bearer {key}"})
        try:
            with urllib.request.urlopen(asked, timeout=LIMIT_S) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    @contextlib.contextmanager
    def load(self, num_clients: int = 4) -> Iterator[list[Answered]]:
        """Clients that ask without a pause; gives what they got, in order."""
        got: list[Answered] = []
        ending = threading.Event()

        def client() -> None:
            while not ending.is_set():
                status, answer = self.ask()
                text = answer["choices"][0]["message"]["content"] if status == 200 else str(answer)
                got.append(Answered(status, text.split(" ")[0]))

        clients = [threading.Thread(target=client) for _ in range(num_clients)]
        for each in clients:
            each.start()
        try:
            yield got
        finally:
            ending.set()
            for each in clients:
                each.join()


@contextlib.contextmanager
def serving(folder: Path, tls: ssl.SSLContext | None = None) -> Iterator[Endpoint]:
    """An endpoint without a version. Its key is KEY."""
    port, loop = free_port(), asyncio.new_event_loop()
    gateway = Gateway("chat", folder, LocalReplicas(folder), Access(KEY, "of replicas"), MAX_REQUEST_BYTES)
    runner = web.AppRunner(gateway.application())

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result(LIMIT_S)
        yield Endpoint(f"{'https' if tls else 'http'}://127.0.0.1:{port}")
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(LIMIT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def wait_until(condition: Callable[[], bool]) -> None:
    """Raises AssertionError where it does not come to hold within LIMIT_S."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "not within the limit"
        time.sleep(0.02)
