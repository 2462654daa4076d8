"""An endpoint over real processes that stand in for vLLM: versions change under load, fail, and are rolled back."""

import dataclasses
import os
import re
import signal
import time

import pytest

from finecut.trainer.serving.rollout_plan import Canary
from finecut.trainer.serving.testing_endpoint import serving, wait_until

CANARY = Canary((20, 60), step_s=0.6, max_error_fraction=0.05, prompts=(), max_new_tokens=4, max_latency_ratio=3.0)
LONG = dataclasses.replace(CANARY, step_s=600)
# What a test's machine may take for what takes at most ten seconds on one of its own.
SLOW = 10


@pytest.fixture
def served(tmp_path):
    """An endpoint whose version "one" is good and answers."""
    with serving(tmp_path) as endpoint:
        assert endpoint.ask()[0] == 503
        endpoint.deploy("one", "good")
        endpoint.until("serving")
        yield endpoint


def grows(got, number):
    """Waits for as many more answers."""
    end = len(got) + number
    wait_until(lambda: len(got) >= end)


def test_a_version_takes_over_under_load_and_no_request_is_lost(served):
    with served.load() as got:
        served.deploy("two", "better", CANARY, replica_count=2)
        served.until("shifting")
        found = served.until("serving", "rolled_back")
        grows(got, 20)
    assert (found["state"], found["stable"]) == ("serving", "two")
    assert {answer.status for answer in got} == {200}
    who = [answer.who for answer in got]
    assert who[0] == "good" and set(who[-10:]) == {"better"}
    shifting = who[who.index("better") : len(who) - who[::-1].index("good")]
    assert 0.1 < shifting.count("better") / len(shifting) < 0.8


def test_the_next_version_need_not_wait_until_the_last_one_is_gone(served):
    with served.load() as got:
        served.deploy("two", "slow")
        served.until("serving")
        wait_until(lambda: got[-1].who == "slow")  # under way when its version is replaced
        assert served.deploy("three", "better") == 200
        wait_until(lambda: served.status()["stable"] == "three")
        assert [served.deploy(name, "good") for name in ("three", "four")] == [409, 200]
        wait_until(lambda: served.status()["stable"] == "four")
    assert {answer.status for answer in got} == {200}
    wait_until(lambda: list(served.status()["versions"]) == ["four"])


def test_a_killed_candidate_is_rolled_back_and_no_request_is_lost(served):
    with served.load() as got:
        served.deploy("two", "better", LONG)
        wait_until(lambda: any(answer.who == "better" for answer in got))
        assert served.deploy("three", "good", CANARY) == 409, "one change at a time"
        os.killpg(served.process("two"), signal.SIGKILL)
        killed = time.monotonic()
        found = served.until("rolled_back")
        seconds = time.monotonic() - killed
        grows(got, 10)
    assert seconds < 10 * SLOW
    assert found["stable"] == "one" and "1 of its 1 replicas failed the health check" in found["message"]
    assert {answer.status for answer in got} == {200}
    assert {answer.who for answer in got[-10:]} == {"good"}


def test_a_candidate_that_hangs_is_rolled_back(served):
    served.deploy("two", "better", LONG)
    served.until("shifting")
    process = served.process("two")
    os.killpg(process, signal.SIGSTOP)
    wait_until(lambda: served.status()["candidate"] is None)
    os.killpg(process, signal.SIGCONT)
    assert served.ask()[1]["choices"][0]["message"]["content"].startswith("good")


@pytest.mark.parametrize(
    ("behaviour", "prompts", "said"),
    [
        ("broken", (), r"requests failed, .* max_error_fraction allows 5.0%"),
        ("mute", ("hello",), "it does not answer 1 of 1 prompts that the version before answers"),
        ("slow", ("hello", "there"), "a token takes .* more than max_latency_ratio"),
        ("fails", (), "vLLM ended: .*the model is not one of ours"),
    ],
)
def test_a_worse_version_does_not_take_over(served, behaviour, prompts, said):
    with served.load() as got:
        served.deploy("two", behaviour, dataclasses.replace(LONG, prompts=prompts))
        found = served.until("rolled_back", "failed", "serving")
    assert found["stable"] == "one" and found["state"] != "serving"
    assert re.search(said, found["message"])
    assert {answer.status for answer in got} == {200}
    wait_until(lambda: list(served.status()["versions"]) == ["one"])


def test_an_oversized_request_is_refused_in_openais_form(served):
    status, answer = served.ask("x" * 5000)
    assert status == 413 and "larger than this endpoint takes" in answer["error"]["message"]
    assert served.ask()[0] == 200


@pytest.mark.parametrize("path", ["/v1/models", "/finecut/status", "/finecut/versions"])
@pytest.mark.parametrize("key", ["", "wrong", "a key of a test, lonG"])
def test_nobody_is_heard_without_the_key(served, path, key):
    status, answer = served.request(path, key=key)
    assert status == 401 and "API key" in answer["error"]["message"]


def test_a_replica_that_is_gone_is_replaced(served):
    process = served.process("one")
    os.killpg(process, signal.SIGKILL)
    wait_until(lambda: served.ask()[0] == 200 and served.process("one") != process)
