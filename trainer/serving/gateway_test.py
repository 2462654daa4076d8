"""An endpoint over real processes that stand in for vLLM: versions change under load, fail, and are rolled back."""

import asyncio
import contextlib
import dataclasses
import os
import re
import signal
import sys
import time

import aiohttp
import pytest
from aiohttp import web

from finecut.trainer.serving import vllm_server
from finecut.trainer.serving.gateway import Gateway
from finecut.trainer.serving.rollout_plan import Canary
from finecut.trainer.serving.vllm_server import ServerSettings, free_port

CANARY = Canary((20, 60), step_s=0.6, max_error_fraction=0.05, prompts=(), max_new_tokens=4, max_latency_ratio=3.0)
_LIMIT_S = 90


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """A model's "folder" is the behaviour of what serves it."""

    def command(settings, port):
        return [sys.executable, "-m", "finecut.trainer.serving.testing_server", str(port), settings.model]

    monkeypatch.setattr(vllm_server, "command", command)


class Endpoint:
    """A gateway on a port, and what is asked of it."""

    def __init__(self, url, session):
        self.url, self.session = url, session

    async def deploy(self, version, behaviour, canary=None, replica_count=1):
        asked = {
            "version": version,
            "settings": dataclasses.asdict(ServerSettings(behaviour, "chat")),
            "replica_count": replica_count,
            "canary": dataclasses.asdict(canary) if canary else None,
            "start_limit_s": _LIMIT_S,
        }
        async with self.session.post(f"{self.url}/finecut/versions", json=asked) as response:
            return response.status

    async def status(self):
        async with self.session.get(f"{self.url}/finecut/status") as response:
            return await response.json()

    async def until(self, *states):
        deadline = time.monotonic() + _LIMIT_S
        while (found := await self.status())["state"] not in states:
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.02)
        return found

    async def ask(self, text="hello"):
        body = {"model": "chat", "messages": [{"role": "user", "content": text}]}
        async with self.session.post(f"{self.url}/v1/chat/completions", json=body) as response:
            return response.status, await response.json()


@contextlib.asynccontextmanager
async def endpoint(folder, max_request_bytes=4096):
    port = free_port()
    runner = web.AppRunner(Gateway("chat", folder, [], max_request_bytes).application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with aiohttp.ClientSession() as session:
        try:
            yield Endpoint(f"http://127.0.0.1:{port}", session)
        finally:
            await runner.cleanup()


@contextlib.asynccontextmanager
async def load(served, clients=4):
    """Clients that ask without a pause; gives what they got, as (time, status, who answered)."""
    got, ending = [], asyncio.Event()

    async def client():
        while not ending.is_set():
            status, answer = await served.ask()
            text = answer["choices"][0]["message"]["content"] if status == 200 else str(answer)
            got.append((time.monotonic(), status, text.split(" ")[0]))

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        yield got
    finally:
        ending.set()
        await asyncio.gather(*tasks)


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, _LIMIT_S * 3))


def test_a_version_takes_over_under_load_and_no_request_is_lost(tmp_path):
    async def scenario():
        async with endpoint(tmp_path) as served:
            assert (await served.ask())[0] == 503
            await served.deploy("one", "good", replica_count=2)
            await served.until("serving")
            async with load(served) as got:
                await served.deploy("two", "better", CANARY)
                assert await served.deploy("three", "good", CANARY) == 409
                await served.until("shifting")
                found = await served.until("serving", "rolled_back")
                end = len(got)
                while len(got) < end + 20:
                    await asyncio.sleep(0.01)
            assert (found["state"], found["stable"]) == ("serving", "two")
            assert {status for _, status, _ in got} == {200}
            who = [name for _, _, name in got]
            assert who[0] == "good" and set(who[-10:]) == {"better"}
            shifting = who[who.index("better") : len(who) - who[::-1].index("good")]
            assert 0.1 < shifting.count("better") / len(shifting) < 0.8

    run(scenario())


def test_a_killed_candidate_is_rolled_back_within_ten_seconds_and_no_request_is_lost(tmp_path):
    async def scenario():
        async with endpoint(tmp_path) as served:
            await served.deploy("one", "good")
            await served.until("serving")
            async with load(served) as got:
                await served.deploy("two", "better", dataclasses.replace(CANARY, step_s=60))
                while "better" not in [name for _, _, name in got]:
                    await asyncio.sleep(0.02)
                [process] = (await served.status())["versions"]["two"]["processes"]
                os.killpg(process, signal.SIGKILL)
                killed = time.monotonic()
                found = await served.until("rolled_back")
                seconds = time.monotonic() - killed
                end = len(got)
                while len(got) < end + 10:
                    await asyncio.sleep(0.01)
            assert seconds < 10
            assert found["stable"] == "one" and "1 of its 1 replicas failed the health check" in found["message"]
            assert {status for _, status, _ in got} == {200}
            assert {name for _, _, name in got[-10:]} == {"good"}

    run(scenario())


def test_a_candidate_that_hangs_is_rolled_back_within_ten_seconds(tmp_path):
    async def scenario():
        async with endpoint(tmp_path) as served:
            await served.deploy("one", "good")
            await served.until("serving")
            await served.deploy("two", "better", dataclasses.replace(CANARY, step_s=60))
            await served.until("shifting")
            [process] = (await served.status())["versions"]["two"]["processes"]
            os.killpg(process, signal.SIGSTOP)
            stopped = time.monotonic()
            while (await served.status())["candidate"] is not None:
                assert time.monotonic() - stopped < 10
                await asyncio.sleep(0.05)
            os.killpg(process, signal.SIGCONT)
            assert (await served.ask())[1]["choices"][0]["message"]["content"].startswith("good")

    run(scenario())


@pytest.mark.parametrize(
    ("behaviour", "prompts", "said"),
    [
        ("broken", (), r"requests failed, .* max_error_fraction allows 5.0%"),
        ("mute", ("hello",), "it does not answer 1 of 1 prompts that the version before answers"),
        ("slow", ("hello", "there"), "a token takes .* more than max_latency_ratio"),
        ("fails", (), "vLLM ended: .*the model is not one of ours"),
    ],
)
def test_a_worse_version_does_not_take_over(tmp_path, behaviour, prompts, said):
    async def scenario():
        async with endpoint(tmp_path) as served:
            await served.deploy("one", "good")
            await served.until("serving")
            async with load(served) as got:
                await served.deploy("two", behaviour, dataclasses.replace(CANARY, prompts=prompts, step_s=5))
                found = await served.until("rolled_back", "failed", "serving")
            assert found["stable"] == "one" and found["state"] != "serving"
            assert re.search(said, found["message"])
            assert {status for _, status, _ in got} == {200}
            assert list((await served.status())["versions"]) == ["one"]

    run(scenario())


def test_an_oversized_request_is_refused_in_openais_form(tmp_path):
    async def scenario():
        async with endpoint(tmp_path) as served:
            await served.deploy("one", "good")
            await served.until("serving")
            status, answer = await served.ask("x" * 5000)
            assert status == 413 and "larger than this endpoint takes" in answer["error"]["message"]
            assert (await served.ask())[0] == 200

    run(scenario())


def test_a_replica_that_is_gone_is_started_again(tmp_path):
    async def scenario():
        async with endpoint(tmp_path) as served:
            await served.deploy("one", "good")
            await served.until("serving")
            [process] = (await served.status())["versions"]["one"]["processes"]
            os.killpg(process, signal.SIGKILL)
            deadline = time.monotonic() + 300
            while True:
                status, _ = await served.ask()
                [now] = (await served.status())["versions"]["one"]["processes"]
                if status == 200 and now != process:
                    return
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)

    run(scenario())
