"""A whole job on two hosts: measured, served from a node of the cluster, asked by a real `openai` client, told to end.

The hosts are loopback addresses with real agents, Ray nodes under TLS and vLLM servers.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import openai

from finecut.launcher.security.authority import Authority
from finecut.launcher.testing import environment
from finecut.proto.run import RunFolder, artifacts
from finecut.proto.run.events import follow
from finecut.tests.aws.hosts import A_DAY, agents, crash
from finecut.trainer.recipes.testing import write_tiny_inputs
from finecut.trainer.rollout.testing import write_tiny_policy
from finecut.trainer.serving.endpoints import Endpoint, endpoints_of
from finecut.trainer.serving.vllm_server import free_port

HOSTS = ("127.31.40.1", "127.31.40.2")
LIMIT_S = 1200

JOB = """
name: "served"
storage {{ root: "{folder}/runs" }}
cluster {{
  static {{
    launcher_address: "127.31.40.10"
    credentials: "{folder}/launcher"
    hosts {{ address: "{hosts[0]}" cpu_count: 1 gpu_count: 0 }}
    hosts {{ address: "{hosts[1]}" cpu_count: 1 gpu_count: 0 }}
  }}
}}
stages {{
  name: "measure"
  evaluate {{
    model: "{folder}/model"
    tasks {{ name: "held-out" data: "{folder}/data" perplexity {{}} }}
    gates: "loss > 0"
  }}
}}
stages {{
  name: "deploy"
  deploy {{
    model: "{folder}/model"
    evaluation: "@measure"
    endpoint: "chat"
    port: {port}
    placement: CLUSTER
    serve_for {{ seconds: 36000 }}
  }}
}}
"""


def wait_until(condition: Callable[[], bool], launcher: "subprocess.Popen[bytes]", log: Path, what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert launcher.poll() is None, f"{what}: the launcher ended\n{log.read_text()}"
        assert time.monotonic() < deadline, f"{what} did not happen\n{log.read_text()}"
        time.sleep(0.5)


def endpoint_of(run: RunFolder) -> Endpoint | None:
    return next(iter(endpoints_of(run)), None)


def answers(client: openai.OpenAI) -> bool:
    """Whether a chat is answered now; a replica may be on its way to another node."""
    try:
        asked = [{"role": "user", "content": "How are you?"}]
        return bool(client.chat.completions.create(model="chat", messages=asked, max_tokens=4).choices)
    except (openai.APIConnectionError, openai.InternalServerError):
        return False


def hosts_of_servers() -> set[str]:
    """Our hosts on which a vLLM server runs."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"vllm.entrypoints.openai.api_server" in words:
            found.add(words[words.index(b"--host") + 1].decode())
    return found & set(HOSTS)


def test_an_endpoint_in_the_cluster_outlives_a_node_and_ends_with_its_job(tmp_path: Path) -> None:
    write_tiny_inputs(tmp_path, write_model=write_tiny_policy)
    authority = Authority.create(tmp_path / "authority")
    authority.mint("launcher", [], A_DAY).write(tmp_path / "launcher", authority.trusted_pem)
    path, log, port = tmp_path / "job.textproto", tmp_path / "launcher.log", free_port()
    path.write_text(JOB.format(folder=tmp_path, hosts=HOSTS, port=port))
    run = RunFolder(tmp_path / "runs" / "served")
    command = [sys.executable, "-m", "finecut.launcher.main", "run", f"--config={path}"]
    with agents(tmp_path, authority, HOSTS), log.open("w") as output:
        launcher = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=output, stderr=output)
        try:
            wait_until(lambda: bool((e := endpoint_of(run)) and e.state == "serving"), launcher, log, "serving")
            endpoint = endpoint_of(run)
            assert endpoint and endpoint.url == f"http://127.0.0.1:{port}/v1"
            client = openai.OpenAI(base_url=endpoint.url, api_key="any", max_retries=0, timeout=LIMIT_S)
            assert answers(client)
            [lost] = hosts_of_servers()
            crash(lost)
            [left] = set(HOSTS) - {lost}
            wait_until(lambda: hosts_of_servers() == {left} and answers(client), launcher, log, "another replica")
            os.kill(endpoint.process_id, signal.SIGTERM)
            assert launcher.wait(LIMIT_S) == 0, log.read_text()
        finally:
            launcher.kill()
            launcher.wait()
    assert artifacts.read(run.artifact("measure")).evaluation.results
    assert artifacts.read(run.artifact("deploy")).endpoint.process_id == endpoint.process_id
    said = [event.message for event in follow(run.events("deploy"))[0]]
    assert said[-1] == "chat was told to end"
    assert [found.state for found in endpoints_of(run)] == ["ended"]
