"""Replicas on a real Ray Serve, with servers that stand in for vLLM: they start, are replaced, and leave nothing."""

import asyncio
import os
import signal
import time

import pytest

from finecut.trainer.rl import local_cluster
from finecut.trainer.serving.testing_server import StandInServer
from finecut.trainer.serving.vllm_server import ServerError, ServerSettings

LIMIT_S = 300


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    with local_cluster.joined():
        from finecut.trainer.serving.serve_replicas import ServeReplicas

        yield ServeReplicas("chat", tmp_path_factory.mktemp("logs"), "a key", StandInServer)


async def until(condition):
    deadline = time.monotonic() + LIMIT_S
    while not await condition():
        assert time.monotonic() < deadline, "not within the limit"
        await asyncio.sleep(0.1)


def test_replicas_start_are_replaced_and_end(layer):
    async def scenario():
        await layer.start("one", ServerSettings("good", "chat"), 2, LIMIT_S)
        first, second = await layer.addresses("one")
        assert first.url != second.url

        async def is_replaced():
            [now, other] = await layer.addresses("one")
            assert other == second
            return now != first

        os.killpg(first.process_id, signal.SIGKILL)
        await until(is_replaced)
        processes = [address.process_id for address in await layer.addresses("one")]
        await layer.stop("one")
        assert await layer.addresses("one") == []

        async def are_gone():
            return not any(os.path.exists(f"/proc/{process}") for process in processes)

        await until(are_gone)

    asyncio.run(scenario())


def test_a_server_that_does_not_start_is_told_in_its_own_words(layer):
    with pytest.raises(ServerError, match="the model is not one of ours"):
        asyncio.run(layer.start("two", ServerSettings("fails", "chat"), 1, LIMIT_S))
    assert asyncio.run(layer.addresses("two")) == []


def test_a_server_that_takes_too_long_is_given_up(layer):
    with pytest.raises(ServerError, match="vLLM did not answer within 1 s"):
        asyncio.run(layer.start("three", ServerSettings("never", "chat"), 1, 1.0))
