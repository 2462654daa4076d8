"""The deploy stage with real vLLM servers, asked by a real `openai` client; and what it refuses before any starts."""

import os
import signal
import socket
import time

import openai
import pytest

from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, artifacts
from finecut.proto.run.events import follow
from finecut.trainer.evaluate.testing import make_job
from finecut.trainer.rollout.testing import write_tiny_policy
from finecut.trainer.serving import control, deploy, fit
from finecut.trainer.serving.endpoints import endpoints_of
from finecut.trainer.serving.vllm_server import free_port

KEY = "an endpoint's key"
LIMIT_S = 600


def job_of(root, port, model="model", fields="", name="deploy"):
    where = f'endpoint: "chat" port: {port} api_key {{ file: "{root}/key" }}'
    work = f'deploy {{ model: "ROOT/{model}" {where} max_request_bytes: 20000 {fields} }}'
    return make_job(root, f'stages {{ name: "{name}" {work} }}')


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("deploy")
    write_tiny_policy(root / "model")
    write_tiny_policy(root / "better", seed=1)
    (root / "key").write_text(KEY)
    return root


@pytest.fixture(scope="module")
def endpoint(root):
    """The first version, on its port."""
    port = free_port()
    artifact = deploy.run_deploy(job_of(root, port), "deploy")
    yield artifact.endpoint, port
    [found, *_] = endpoints_of(RunFolder.of(job_of(root, port)))
    assert found.state == "serving"
    os.kill(artifact.endpoint.process_id, signal.SIGTERM)
    deadline = time.monotonic() + LIMIT_S
    while os.path.exists(f"/proc/{artifact.endpoint.process_id}"):
        assert time.monotonic() < deadline, "the endpoint does not end"
        time.sleep(0.1)
    assert {found.state for found in endpoints_of(RunFolder.of(job_of(root, port)))} == {"ended"}


def client_of(endpoint, key=KEY):
    return openai.OpenAI(base_url=endpoint.url, api_key=key, max_retries=0, timeout=LIMIT_S)


def chat(client, text="How are you?", **fields):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="chat", messages=messages, temperature=0, max_tokens=8, **fields)


def test_a_client_is_answered_whole_and_in_a_stream(endpoint):
    client = client_of(endpoint[0])
    whole = chat(client).choices[0].message.content
    parts = [chunk.choices[0].delta.content or "" for chunk in chat(client, stream=True)]
    assert whole and "".join(parts) == whole and len(parts) > 1
    assert [model.id for model in client.models.list()] == ["chat"]


def test_others_are_not_answered(endpoint):
    with pytest.raises(openai.AuthenticationError, match="API key"):
        chat(client_of(endpoint[0], "another"))


def test_requests_that_are_too_long_are_refused_in_plain_words(endpoint):
    client = client_of(endpoint[0])
    with pytest.raises(openai.BadRequestError, match="512"):  # the model's positions; vLLM says so
        chat(client, "word " * 900)
    with pytest.raises(openai.APIStatusError, match="larger than this endpoint takes"):
        chat(client, "word " * 9000)


def test_a_second_version_takes_over_after_its_canary(root, endpoint):
    """The same stage name, so that nothing but the model tells the versions apart."""
    before, port = endpoint
    answered = chat(client_of(before)).choices[0].message.content
    canary = 'canary { traffic_percent: 50 step_time { seconds: 1 } prompts: "Hello?" max_latency_ratio: 1000 }'
    job = job_of(root, port, "better", canary, name="again")
    after = deploy.run_deploy(job, "again").endpoint
    assert (after.url, after.process_id) == (before.url, before.process_id) and after.version != before.version
    assert chat(client_of(after)).choices[0].message.content != answered
    said = "\n".join(event.message for event in follow(RunFolder.of(job).events("again"))[0])
    assert "is compared with" in said and "gets 50% of requests" in said and "answers on http://127.0.0.1" in said
    assert artifacts.read(RunFolder.of(job).artifact("again")).endpoint == after
    found, first = endpoints_of(RunFolder.of(job))
    assert (first.stage, found.stage, found.name, found.url) == ("deploy", "again", "chat", after.url)
    assert (found.state, found.stable, found.process_id) == ("serving", after.version, after.process_id)


def test_a_port_in_use_is_named(root, monkeypatch):
    monkeypatch.setattr(control, "_ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        with pytest.raises(UserError, match=rf"deploy.port: port {port} is in use by another program"):
            deploy.run_deploy(job_of(root, port), "deploy")


def test_a_model_that_does_not_fit_is_refused(root, monkeypatch):
    monkeypatch.setattr(fit, "_machine_bytes", lambda: 300_000)
    with pytest.raises(UserError, match=r"its weights take 0\.0 GB in float32, and this machine's memory leave"):
        deploy.run_deploy(job_of(root, free_port()), "deploy")


def test_parameters_are_counted_from_headers(root):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(root / "model")
    assert fit.num_parameters(root / "model") == sum(parameter.numel() for parameter in model.parameters())
